"""What one result of another tool becomes: a record with that tool's definitions.

A value has the name that we have for the nearest quantity, and the tool's own formula id
("vllm-bench:ttft_ms/1"): nothing compares values of two definitions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pytest_llmperf.core.benchmark import TIME
from pytest_llmperf.core.environment import environment_key
from pytest_llmperf.core.metrics.quantities import TABLE, Metric
from pytest_llmperf.core.record import SPEED, Environment, Fact, MetricValue, Record

IMPORTED = "imported"
"""Type of the workload of such a record, and its strategy."""

MS = 1e-3


@dataclass(frozen=True, kw_only=True)
class Value:
    """One number: our name of the quantity, in our unit, and the tool's own field."""

    name: str
    value: float
    field: str
    n: int = 0


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of another tool.

    `work` is what was asked for and decides what is comparable; `speed` names the metric that is
    compared where nobody names one. `created` is an ISO 8601 time. `samples` are single values by
    the name of their quantity, in our units. `version` is of the definitions of its values.
    """

    tool: str
    name: str
    model: str
    created: str
    work: Mapping[str, Any]
    values: Sequence[Value]
    speed: str
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    version: str = "1"


def distribution(
    name: str, stats: Iterable[tuple[str, float]], own_field: str, n: int = 0
) -> list[Value]:
    """Return the statistics of one of our distributions."""
    known = TABLE[name].statistics
    return [
        Value(name=f"{name}.{part}", value=value, field=own_field, n=n)
        for part, value in stats
        if part in known
    ]


def record(
    result: Result, *, content: str, at: int, label: str, facts: Mapping[str, Fact]
) -> Record:
    """Return the record of result number `at` of a file, of which `content` is the hash.

    The same file gives the same records. `facts` say where it was measured, beside the file's own.
    """
    environment = Environment(facts={**result.facts, **facts})
    workload = {"type": IMPORTED, "tool": result.tool, SPEED: result.speed, **result.work}
    return Record(
        id=_hash([content, at])[:32],
        session_id=_hash([content])[:32],
        created=result.created,
        test=f"{result.tool}::{result.name}",
        label=label,
        workload=workload,
        workload_text=_text(result),
        workload_key=_hash(workload)[:16],
        strategy=IMPORTED,
        engine=result.tool,
        model=result.model,
        model_hash=_hash({"model": result.model})[:16],
        environment_key=environment_key(environment),
        environment=environment,
        effective=None,
        metrics=tuple(_metric(result, value) for value in result.values),
        samples=dict(result.samples),
        warm_up={},
        marks=(),
        outcome="RECORDED",
        extra={"imported": result.tool, **result.extra},
    )


def _metric(result: Result, value: Value) -> MetricValue:
    row = _row(value.name)
    return MetricValue(
        name=value.name,
        unit=row.unit,
        direction=row.direction,
        formula=f"{result.tool}:{value.field}/{result.version}",
        value=value.value,
        n=value.n,
    )


def _row(name: str) -> Metric:
    return TIME if name == TIME.name else TABLE.get(name) or TABLE[name.partition(".")[0]]


def _text(result: Result) -> str:
    """Return the work in a few words for tables."""
    words = [f"{name}={value}" for name, value in result.work.items() if value is not None]
    return " ".join([result.tool, *words])[:120]


def _hash(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()
