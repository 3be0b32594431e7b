"""What stands below the summary's table: what its headers mean, and what it does not show. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_llmperf.core.format import MISSING
from pytest_llmperf.report.run_names import full_names
from pytest_llmperf.report.summary import METRICS, headline, metrics_of
from pytest_llmperf.report.table import Column

if TYPE_CHECKING:
    from pytest_llmperf.core.record import MetricValue, Record


def legend(visible: Sequence[Column], records: Sequence[Record], *, verbose: bool) -> str:
    """Return what the headers mean, for those that are there."""
    headers = {column.header for column in visible}
    parts = [_throughput_legend(records, wider_side="" if verbose else " (wider side)")]
    parts += [metric.explain for metric in METRICS if metric.header in headers and metric.explain]
    if "top-1" in headers:
        parts.append("top-1: positions where the reference's token is the most likely one")
    if "ratio" in headers:
        parts.append("ratio: tok/s over that of the run it was paired with (ref)")
    return "; ".join(parts)


def left_out(dropped: Sequence[Column], n_runs: int, width: int) -> str:
    """Return which columns had no room; a text that all runs share is said here instead."""
    if not dropped:
        return ""
    names = ", ".join(_name(column, n_runs) for column in dropped)
    return f"hidden ({width} columns): {names}"


def hidden_values(dropped: Sequence[Column], records: Sequence[Record]) -> list[str]:
    """Return a line for each run with what had no room in the table."""
    shown = [column for column in dropped if len(set(column.cells)) > 1 or column.right]
    return [
        f"{name}: {values}"
        for row, name in enumerate(full_names(records))
        if (values := _values_of_row(shown, row))
    ]


def _values_of_row(columns: Sequence[Column], row: int) -> str:
    cells = ((column.header, " ".join(column.cells[row].split())) for column in columns)
    return ", ".join(f"{header} {cell}" for header, cell in cells if cell != MISSING)


def not_measurable(records: Sequence[Record], visible: Sequence[Column]) -> list[str]:
    """Return each reason once, with the columns and the number of runs it holds for."""
    headers = {column.header for column in visible}
    by_reason: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        for header, reason in _missing(record):
            if header in headers:
                by_reason.setdefault(reason, []).append((header, record.id))
    return [_not_measurable(reason, places, len(records)) for reason, places in by_reason.items()]


def _missing(record: Record) -> list[tuple[str, str]]:
    """Return the headers whose value is not measurable, with their reasons."""
    return [
        (header, value.reason or "no reason was given")
        for header, value in _values(record)
        if value.value is None
    ]


def _not_measurable(reason: str, places: Sequence[tuple[str, str]], n_runs: int) -> str:
    """Say for which headers and for how many runs a reason holds; places are both of them."""
    headers = dict.fromkeys(header for header, _ in places)
    n_affected = len({run for _, run in places})
    return f"n/m {', '.join(headers)}{_share(n_affected, n_runs)}: {reason}"


def _values(record: Record) -> list[tuple[str, MetricValue]]:
    """Return the record's values by the header of their column."""
    metrics = metrics_of(record)
    values = [("tok/s", headline(record))]
    values += [(column.header, metrics.get(column.metric)) for column in METRICS]
    return [(header, value) for header, value in values if value is not None]


def _throughput_legend(records: Sequence[Record], *, wider_side: str) -> str:
    headlines = [value for value in map(headline, records) if value is not None]
    levels = {
        value.confidence
        for value in headlines
        if value.confidence is not None and value.low is not None
    }
    interval = f", ± {100 * levels.pop():g} % interval{wider_side}" if len(levels) == 1 else ""
    return f"tok/s: {_counted_tokens(records)}{interval}"


def _counted_tokens(records: Sequence[Record]) -> str:
    are_prefills = [record.workload.get("type") == "prefill" for record in records]
    if all(are_prefills):
        return "prompt tokens"
    if any(are_prefills):
        return "output tokens (of a prefill: prompt tokens)"
    return "output tokens"


def _name(column: Column, n_runs: int) -> str:
    texts = set(column.cells)
    if column.header not in {"strategy", "workload"} or len(texts) != 1:
        return column.header
    in_every_run = " in every run" if n_runs > 1 else ""
    return f"{column.header} ({texts.pop()}{in_every_run})"


def _share(n: int, total: int) -> str:
    return "" if n == total else f" in {n} of {total} runs"
