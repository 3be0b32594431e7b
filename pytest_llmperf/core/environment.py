"""Which facts of an environment must match for two runs to be compared, and what differs between two. Pure."""

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


WHERE_KNOWN = ("n_hosts",)
"""As COMPARABLE, of records that have the fact: only a model on a cluster has a number of hosts.

The others keep their keys.
"""


MUST_MATCH = (*COMPARABLE, *WHERE_KNOWN)
"""Both: what the report marks, and what an error names."""


def environment_key(environment: Environment) -> str:
    """SHA-256 (16 hex digits) of the facts in `COMPARABLE` and `WHERE_KNOWN`: equal keys are comparable."""
    known = [name for name in WHERE_KNOWN if environment.facts.get(name) is not None]
    content = msgspec.json.encode(
        [[name, environment.facts.get(name)] for name in (*COMPARABLE, *known)]
    )
    return hashlib.sha256(content).hexdigest()[:16]


def device_names(environment: Environment) -> list[str]:
    """What the device of a run may be called, the most telling first: its name, its kind, the CPU's model."""
    names = (environment.facts.get(name) for name in ("device_name", "device", "cpu_model"))
    return [str(name) for name in names if name]


def differences(
    a: Environment, b: Environment, names: Sequence[str] = MUST_MATCH
) -> list[tuple[str, Fact, Fact]]:
    """(name, fact in a, fact in b) for each of `names` that differs.

    Empty exactly when the keys are equal.
    """
    pairs = ((name, a.facts.get(name), b.facts.get(name)) for name in names)
    return [(name, left, right) for name, left, right in pairs if not _same(left, right)]


def covariates(a: Environment, b: Environment) -> list[tuple[str, Fact, Fact]]:
    """As `differences`, over every other fact: what may explain a change without forbidding the comparison."""
    names = sorted({*a.facts, *b.facts} - set(MUST_MATCH))
    return differences(a, b, names)


def _same(a: Fact, b: Fact) -> bool:
    """Equal in the sense of the key: what is encoded alike. 2 and 2.0 are not the same text."""
    return msgspec.json.encode(a) == msgspec.json.encode(b)
