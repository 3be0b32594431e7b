"""Which facts of an environment must match for two runs to be compared, and which differ. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from pytest_llmperf.core.record import Environment, Fact

COMPARABLE = (
    "device",
    "device_name",
    "device_count",
    "device_power_limit_w",
    "cpu_model",
    "cpu_cores_limit",
    "torch_threads",
)
"""The facts that must be equal for two runs to be compared with each other, with `WHERE_KNOWN`.

Versions (engine, torch, driver, Python, kernel) and the commit are covariates: they are what a
history is there to judge. An unknown fact equals only an unknown one.
"""

WHERE_KNOWN = ("n_hosts", "omp_wait_policy")
"""The facts that must be equal where a record has them.

Only a model on a cluster has a number of hosts, and only a worker that was told one a policy of its
waiting threads (docs/decisions/0038); the keys of the others do not change.
"""

MUST_MATCH = (*COMPARABLE, *WHERE_KNOWN)
"""Both: what the report marks, and what an error names."""


def environment_key(environment: Environment) -> str:
    """Return 16 hex digits of the SHA-256 of the facts that must match.

    Runs with equal keys are comparable.
    """
    facts = environment.facts
    known = [name for name in WHERE_KNOWN if facts.get(name) is not None]
    content = [[name, facts.get(name)] for name in (*COMPARABLE, *known)]
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:16]


def device_names(environment: Environment) -> list[str]:
    """Return what the device of a run may be called: its name, its kind, the CPU's model."""
    names = (environment.facts.get(name) for name in ("device_name", "device", "cpu_model"))
    return [str(name) for name in names if name]


def differences(
    a: Environment, b: Environment, names: Sequence[str] = MUST_MATCH
) -> list[tuple[str, Fact, Fact]]:
    """Return (name, fact in a, fact in b) for each of `names` that differs.

    It is empty exactly when the keys are equal.
    """
    facts = ((name, a.facts.get(name), b.facts.get(name)) for name in names)
    return [(name, fact_a, fact_b) for name, fact_a, fact_b in facts if not _same(fact_a, fact_b)]


def covariates(a: Environment, b: Environment) -> list[tuple[str, Fact, Fact]]:
    """Return the `differences` of every other fact.

    They may explain a change, and do not forbid the comparison.
    """
    names = sorted({*a.facts, *b.facts} - set(MUST_MATCH))
    return differences(a, b, names)


def _same(a: Fact, b: Fact) -> bool:
    """Whether both are encoded alike, as in the key: 2 and 2.0 are not the same text."""
    return msgspec.json.encode(a) == msgspec.json.encode(b)
