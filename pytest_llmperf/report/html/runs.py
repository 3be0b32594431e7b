"""Records as the report's sections read them: runs of one model, workload and environment, each strategy by its newest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from msgspec import Struct

from pytest_llmperf.core.benchmark import BENCHMARK, TIME
from pytest_llmperf.core.format import MISSING, format_interval, format_value
from pytest_llmperf.core.record import AGREEMENT, NOT_RUNS, TASKS, MetricValue, Record
from pytest_llmperf.core.verdicts import stats

DEFAULT_REFERENCE = "fp32"
_FIRST = {
    "prefill": "prefill_throughput",
    BENCHMARK: TIME.name,
    AGREEMENT: "agreement.top1",
    TASKS: "task.accuracy",
}


class Group(Struct, frozen=True, kw_only=True):
    """What may be compared: one model, workload and environment.

    `runs` has the newest of each strategy, fastest first.

    `reference` is the strategy that the others are held against, "" where nobody ran it.
    """

    model: str
    workload: str
    environment_key: str
    runs: tuple[Record, ...]
    every: tuple[Record, ...]
    reference: str


class Ratio(Struct, frozen=True, kw_only=True):
    """A speed over the reference's.

    The ends are None where there are too few samples for an interval.
    """

    value: float
    low: float | None
    high: float | None
    paired: bool


def is_run(record: Record) -> bool:
    """Whether the record is of a run of a model, and not of an agreement, answers or a benchmark's rounds."""
    return record.workload.get("type") not in NOT_RUNS and record.workload.get("type") != BENCHMARK


def headline(record: Record) -> str:
    """The metric that says most of such a record."""
    return _FIRST.get(str(record.workload.get("type")), "throughput")


def metric(record: Record, name: str) -> MetricValue | None:
    """A metric of the record, None where it has none of that name."""
    return next((each for each in record.metrics if each.name == name), None)


def value(record: Record, name: str) -> float | None:
    """Its number, None where it was not measured or is not finite."""
    found = metric(record, name)
    return (
        found.value
        if found is not None and found.value is not None and math.isfinite(found.value)
        else None
    )


def shown(record: Record, name: str, digits: int = 3) -> str:
    """Its number and unit as text."""
    found, number = metric(record, name), value(record, name)
    return MISSING if found is None or number is None else format_value(number, found.unit, digits)


def interval(record: Record, name: str) -> str:
    """Its interval as text, "" without one."""
    found, number = metric(record, name), value(record, name)
    return (
        ""
        if found is None or number is None
        else format_interval(number, found.low, found.high, found.unit)
    )


def named(record: Record) -> str:
    """The strategy, with the engine unless it is the usual one, and the run's label."""
    engine = "" if record.engine in ("transformers", "scripted") else f" [{record.engine}]"
    return f"{record.strategy}{engine}{f' ({record.label})' if record.label else ''}"


def split_test(test: str) -> tuple[str, str]:
    """A node id as the name that tells tests apart, and the file it is in."""
    file, separator, name = test.partition("::")
    return (name, file) if separator else (test, "")


def plural(n: int, noun: str) -> str:
    """For example: `1 run`, `2 runs`, `3 strategies`."""
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{n} {noun if n == 1 else many}"


def words(record: Record) -> str:
    """What a filter looks for in a record."""
    return f"{record.test} {record.label} {record.model} {record.strategy} {record.engine} {record.workload_text}"


def groups(records: Sequence[Record]) -> list[Group]:
    """The runs by what may be compared, the largest group first."""
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if is_run(record) and value(record, headline(record)) is not None:
            found.setdefault(
                (record.model, record.workload_text, record.environment_key), []
            ).append(record)
    made = [_group(key, every, records) for key, every in found.items()]
    return sorted(made, key=lambda group: (-len(group.runs), group.model, group.workload))


def ratio(record: Record, group: Group) -> Ratio | None:
    """The run's speed over that of the reference it was measured in turn with, else over the newest one's."""
    name = headline(record)
    references = [
        each for each in group.every if each.strategy == group.reference and each.id != record.id
    ]
    if record.strategy == group.reference or not references:
        return None
    together = next(
        (
            each
            for each in references
            if each.paired_with and each.paired_with == record.paired_with
        ),
        None,
    )
    other = together or newest(references)
    ours, theirs = record.samples.get(name, ()), other.samples.get(name, ())
    paired = together is not None and len(ours) == len(theirs)
    if not ours or not theirs or min(*ours, *theirs) <= 0:
        return _plain_ratio(value(record, name), value(other, name))
    found = stats.log_ratio_interval(ours, theirs, paired=paired)
    bounded = math.isfinite(found.low) and math.isfinite(found.high)
    low, high = (math.exp(found.low), math.exp(found.high)) if bounded else (None, None)
    return Ratio(value=math.exp(found.center), low=low, high=high, paired=paired)


def newest(records: Iterable[Record]) -> Record:
    """The record that was made last."""
    return max(records, key=lambda record: (record.created, record.id))


def memory(record: Record) -> float | None:
    """Bytes that a run takes: on a GPU its peak, which holds the weights.

    On a CPU the weights and what a run adds to them.
    """
    weights, peak = value(record, "memory.weights"), value(record, "memory.peak")
    if str(record.environment.facts.get("device") or "cpu").startswith("cpu"):
        return None if weights is None or peak is None else weights + peak
    return peak


def _group(key: tuple[str, str, str], every: Sequence[Record], records: Sequence[Record]) -> Group:
    model, workload, environment_key = key
    by_strategy: dict[str, list[Record]] = {}
    for record in every:
        by_strategy.setdefault(named(record), []).append(record)
    runs = sorted(
        map(newest, by_strategy.values()),
        key=lambda each: (-(value(each, headline(each)) or 0.0), named(each)),
    )
    reference = _reference(model, every, records)
    return Group(
        model=model,
        workload=workload,
        environment_key=environment_key,
        runs=tuple(runs),
        every=tuple(every),
        reference=reference if any(run.strategy == reference for run in runs) else "",
    )


def _reference(model: str, every: Sequence[Record], records: Sequence[Record]) -> str:
    """What agreements of this model were held against, else fp32."""
    asked = [*every, *(record for record in records if record.model == model)]
    found = (str((record.agreement or {}).get("reference") or "") for record in asked)
    return next(filter(None, found), DEFAULT_REFERENCE)


def _plain_ratio(ours: float | None, theirs: float | None) -> Ratio | None:
    if not ours or not theirs or theirs <= 0:
        return None
    return Ratio(value=ours / theirs, low=None, high=None, paired=False)
