"""A record: everything one finished run leaves behind.

Versioned; stored as one row and as one JSON line.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.trace import Mark

SCHEMA_VERSION = 1

UNFINISHED = "recorded"
"""A record's outcome until its test is over."""

AGREEMENT = "agreement"
"""Type of the workload of a record that holds an agreement and no run."""

TOOK = "took_s"
"""What `extra` holds of the time of a measurement: its loads, warm-ups, samples and readings, in s.

The sides of a comparison share it.
"""

TASKS = "tasks"
"""The same for a record that holds the answers to a task set."""

SPEED = "speed"
"""What the workload of an imported record names: the metric that is compared unasked."""

NOT_RUNS = frozenset({AGREEMENT, TASKS})


class MetricValue(Struct, frozen=True, kw_only=True):
    """One metric of a run. `value` None means not measurable, with `reason`.

    `formula` names the definition used.
    """

    name: str
    unit: str
    direction: str
    formula: str
    value: float | None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    n: int = 0
    reason: str = ""


class ClaimRecord(Struct, frozen=True, kw_only=True):
    """A comparison made in a test.

    `margin` is log(value / bound) in the direction of the claim (positive: holds).
    """

    text: str
    outcome: str
    margin: float | None
    detail: str


class Environment(Struct, frozen=True, kw_only=True):
    """Where a run was made.

    Which facts must match for two runs to be comparable is `COMPARABLE` in session.environment.
    """

    facts: dict[str, str | int | float | bool | None]


class ProcessFacts(Struct, frozen=True, kw_only=True):
    """The processes that a run was measured in.

    `sizes` are the valid repetitions of each, in order; empty, one process ran all. `between` and
    `within` are the standard deviations of the logs of the throughput, between processes and of
    repetitions within one; `apart` is by which share the fastest exceeds the slowest. `note` says
    why there was one alone, and `known` what stood in for `between`, with its degrees of freedom,
    from `known_from`.
    """

    count: int = 1
    sizes: tuple[int, ...] = ()
    between: float | None = None
    within: float | None = None
    apart: float | None = None
    note: str = ""
    known: float | None = None
    known_freedom: float = 1.0
    known_from: str = ""


ONE_PROCESS = ProcessFacts()


class Record(Struct, frozen=True, kw_only=True):
    """One finished run (or one side of a comparison)."""

    schema_version: int = SCHEMA_VERSION
    id: str
    session_id: str
    created: str
    test: str
    label: str
    workload: dict[str, Any]
    workload_text: str
    workload_key: str
    strategy: str
    engine: str
    model: str
    model_hash: str
    environment_key: str
    environment: Environment
    effective: Effective | None
    metrics: tuple[MetricValue, ...]
    samples: dict[str, tuple[float, ...]]
    warm_up: dict[str, Any]
    marks: tuple[Mark, ...]
    claims: tuple[ClaimRecord, ...] = ()
    agreement: dict[str, Any] | None = None
    paired_with: str | None = None
    outcome: str = UNFINISHED
    extra: dict[str, Any] = {}
    processes: ProcessFacts | None = None

    @property
    def in_processes(self) -> ProcessFacts:
        """The processes of the run; an older record's one."""
        return self.processes or ONE_PROCESS


def speed_metric(record: Record) -> str:
    """Name a run's speed: output tokens per second, or prompt tokens per second of a prefill.

    An imported record names its own.
    """
    if SPEED in record.workload:
        return str(record.workload[SPEED])
    return "prefill_throughput" if record.workload.get("type") == "prefill" else "throughput"


def attempt_of(record: Record) -> int:
    """Return 1 for a run, and more where the gate measured it again."""
    return int(record.extra.get("attempt", 1))


Fact = str | int | float | bool | None
