"""The metrics of a test as properties of its JUnit XML element. Pure.

A property has a name and a value, and nothing else: unit and interval are properties of their own
beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

from pytest_llmperf.core.record import MetricValue, Record

PREFIX = "llmperf"
OURS = ("llmperf.", "llmperf[")
_FIELDS = {
    "outcome": "outcome",
    "model": "model",
    "strategy": "strategy",
    "engine": "engine",
    "workload_text": "workload",
    "label": "label",
    "id": "record",
}
"""Fields of a record -> the properties that show them."""


def properties(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(`llmperf.throughput`, "14.2"), (`llmperf.throughput.unit`, "tok/s"), `.low` and `.high`.

    `.reason` where not measurable.

    A test with several runs has them as `llmperf[2].throughput`, in their order, and what the gate
    measured again as `llmperf.again[1].throughput`. Numbers are in the unit, never prefixed.
    """
    names = _names(records)
    runs = (_of_run(name, record) for name, record in zip(names, records, strict=True))
    return _unique(list(chain.from_iterable(runs)))


def _names(records: Sequence[Record]) -> list[str]:
    """Return what the properties of each run begin with.

    What the gate measured again is counted below the run that it repeats, whose name stays.
    """
    first_runs = [record for record in records if _attempt(record) == 1]
    numbered = [f"{PREFIX}[{i}]" for i in range(1, len(first_runs) + 1)]
    prefixes = [PREFIX] if len(first_runs) == 1 else numbered
    by_work: dict[tuple[str, ...], str] = {}
    for record, prefix in zip(first_runs, prefixes, strict=True):
        by_work.setdefault(_work(record), prefix)
    remaining = iter(prefixes)
    return [
        next(remaining)
        if _attempt(record) == 1
        else f"{by_work.get(_work(record), PREFIX)}.again[{_attempt(record) - 1}]"
        for record in records
    ]


def _attempt(record: Record) -> int:
    return int(record.extra.get("attempt", 1))


def _work(record: Record) -> tuple[str, ...]:
    return record.label, record.workload_key, record.strategy, record.engine, record.model


def _of_run(run: str, record: Record) -> Iterator[tuple[str, str]]:
    for field, name in _FIELDS.items():
        if text := getattr(record, field):
            yield f"{run}.{name}", text
    for metric in record.metrics:
        for name, text in _metric(metric):
            yield f"{run}.{metric.name}{name}", text


def _metric(metric: MetricValue) -> Iterator[tuple[str, str]]:
    if metric.value is None:
        yield ".reason", metric.reason or "no reason was given"
        return
    yield "", repr(metric.value)
    yield ".unit", metric.unit
    for name, end in ((".low", metric.low), (".high", metric.high)):
        if end is not None:
            yield name, repr(end)


def _unique(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Leave out a metric that is named like another's part.

    A reader that makes a table of the properties keeps one value a name.
    """
    counts = Counter(name for name, _ in pairs)
    return [pair for pair in pairs if counts[pair[0]] == 1]
