"""What the report's sections read from a record: its metrics as text, its names, its rows."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pytest_llmperf.core.benchmark import BENCHMARK, TIME
from pytest_llmperf.core.format import MISSING, format_interval, format_value
from pytest_llmperf.core.metrics.quantities import CPU_GROWTH
from pytest_llmperf.core.record import AGREEMENT, NOT_RUNS, TASKS, MetricValue, Record
from pytest_llmperf.report.html.blocks import Cell, Row

_HEADLINES = {
    "prefill": "prefill_throughput",
    BENCHMARK: TIME.name,
    AGREEMENT: "agreement.top1",
    TASKS: "task.accuracy",
}


def is_run(record: Record) -> bool:
    """Whether a model was run: not an agreement, not answers, not a benchmark's rounds."""
    workload_type = record.workload.get("type")
    return workload_type not in NOT_RUNS and workload_type != BENCHMARK


def headline(record: Record) -> str:
    """Return the name of the metric that says most of such a record."""
    return _HEADLINES.get(str(record.workload.get("type")), "throughput")


def metric(record: Record, name: str) -> MetricValue | None:
    """Return a metric of the record, None where it has none of that name."""
    return next((metric for metric in record.metrics if metric.name == name), None)


def value(record: Record, name: str) -> float | None:
    """Return a metric's number, None where it was not measured or is not finite."""
    measured = metric(record, name)
    return None if measured is None else _finite(measured.value)


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def unit(record: Record, name: str) -> str:
    """Return a metric's unit, "" where the record has none of that name."""
    measured = metric(record, name)
    return "" if measured is None else measured.unit


def value_text(record: Record, name: str, digits: int = 3) -> str:
    """Return a metric's number and unit as text."""
    number = value(record, name)
    if number is None:
        return MISSING
    return format_value(number, unit(record, name), digits)


def interval_text(record: Record, name: str) -> str:
    """Return a metric's interval as text, "" without one."""
    measured, number = metric(record, name), value(record, name)
    if measured is None or number is None:
        return ""
    return format_interval(number, measured.low, measured.high, measured.unit)


def strategy_name(record: Record) -> str:
    """Return the strategy, with the engine unless it is the usual one, and the run's label."""
    label = f" ({record.label})" if record.label else ""
    return f"{record.strategy}{_engine_text(record.engine)}{label}"


def _engine_text(engine: str) -> str:
    return "" if engine in ("transformers", "scripted") else f" [{engine}]"


def split_test(test: str) -> tuple[str, str]:
    """Return a node id as the name that tells tests apart, and the file it is in."""
    file, separator, name = test.partition("::")
    return (name, file) if separator else (test, "")


def minute_text(created: str) -> str:
    """Return a time (ISO 8601) to the minute, for example `2026-01-31 12:00`."""
    return created[:16].replace("T", " ")


def plural(n: int, noun: str) -> str:
    """Return the number with its noun, for example `1 run`, `2 runs`, `3 strategies`."""
    return f"{n} {noun}" if n == 1 else f"{n} {_plural_form(noun)}"


def _plural_form(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


def search_words(record: Record) -> str:
    """Return the text that a filter searches for a record."""
    names = (record.test, record.label, record.model, record.strategy, record.engine)
    return " ".join((*names, record.workload_text))


def record_row(record: Record, *cells: Cell, run: str = "", anchor: str = "") -> Row:
    """Return a table's row about a record, as filters look for it.

    `run` is the id of the record whose samples the row offers to download.
    """
    words = search_words(record)
    return Row(cells=cells, words=words, outcome=record.outcome, run=run, anchor=anchor)


def text_row(*texts: str) -> Row:
    """Return a table's row of plain cells, which no filter looks for."""
    return Row(cells=tuple(map(Cell, texts)))


def newest(records: Iterable[Record]) -> Record:
    """Return the record that was made last."""
    return max(records, key=lambda record: (record.created, record.id))


def memory_bytes(record: Record) -> float | None:
    """Return the bytes that a run takes: its peak, which holds the weights.

    None on a CPU by the first definition, which was the growth alone.
    """
    growth_alone = _is_on_cpu(record) and any(
        metric.name == "memory.peak" and metric.formula == CPU_GROWTH for metric in record.metrics
    )
    return None if growth_alone else value(record, "memory.peak")


def _is_on_cpu(record: Record) -> bool:
    return str(record.environment.facts.get("device") or "cpu").startswith("cpu")
