"""The metrics of a test as properties of its JUnit XML element. Pure.

A property has a name and a value, and nothing else: unit and interval are properties of their own
beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pytest_llmperf.core.record import MetricValue, Record

PREFIX = "llmperf"
OURS = ("llmperf.", "llmperf[")


def properties(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(`llmperf.throughput`, "14.2"), (`llmperf.throughput.unit`, "tok/s"), `.low` and `.high`.

    `.reason` where not measurable.

    A test with several runs has them as `llmperf[2].throughput`, in their order. Numbers are in the
    unit, never prefixed.
    """
    found: list[tuple[str, str]] = []
    for at, record in enumerate(records, start=1):
        run = PREFIX if len(records) == 1 else f"{PREFIX}[{at}]"
        found += [(f"{run}.{name}", text) for name, text in _about(record)]
        found += [
            (f"{run}.{metric.name}{name}", text)
            for metric in record.metrics
            for name, text in _metric(metric)
        ]
    return _unique(found)


def _about(record: Record) -> Iterator[tuple[str, str]]:
    for name in ("outcome", "model", "strategy", "engine", "workload_text", "label", "id"):
        if text := getattr(record, name):
            yield {"workload_text": "workload", "id": "record"}.get(name, name), text


def _metric(metric: MetricValue) -> Iterator[tuple[str, str]]:
    if metric.value is None:
        yield ".reason", metric.reason or "no reason was given"
        return
    yield "", repr(metric.value)
    yield ".unit", metric.unit
    for name, end in ((".low", metric.low), (".high", metric.high)):
        if end is not None:
            yield name, repr(end)


def _unique(found: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """A reader that makes a table of them keeps one value a name: a metric that is named like another's part is left out."""
    counts = Counter(name for name, _ in found)
    return [(name, text) for name, text in found if counts[name] == 1]
