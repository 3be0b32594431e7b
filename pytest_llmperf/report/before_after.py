"""The column "before → after (change)" of the summary. Pure: from changes to text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pytest_llmperf.core.change import stored_changes
from pytest_llmperf.core.format import MISSING, format_number, format_percent, scale_of
from pytest_llmperf.core.record import speed_metric

if TYPE_CHECKING:
    from pytest_llmperf.core.change import Change
    from pytest_llmperf.core.record import Record

HEADER = "before → after (change)"
_WORST_FIRST = ("FAIL", "WAIVED", "UNDECIDED")
Run = tuple[str, str, str, str]
"""What tells a session's runs apart: test, label, strategy, workload."""


def cells(records: Sequence[Record], changes: Iterable[Change]) -> tuple[str, ...]:
    """Return a text for each run: its speed before and after, or the metric that is worse.

    `changes` are those of the gate; those against another version lie in the records.
    """
    by_run: dict[Run, list[Change]] = {}
    for change in changes:
        key = (change.test, change.label, change.strategy, change.workload_text)
        by_run.setdefault(key, []).append(change)
    return tuple(_cell(record, by_run.get(_run(record), [])) for record in records)


def _run(record: Record) -> Run:
    return record.test, record.label, record.strategy, record.workload_text


def _cell(record: Record, gated: Sequence[Change]) -> str:
    known = [*stored_changes(record), *gated]
    comparable = [change for change in known if change.before and change.after is not None]
    if not comparable:
        return MISSING
    speed = speed_metric(record)
    worst = min(comparable, key=lambda change: _rank(change, speed))
    name = "" if worst.metric == speed else f"{worst.metric} "
    return f"{name}{change_text(worst)}"


def _rank(change: Change, speed: str) -> tuple[int, bool]:
    """Order changes: what is worse first, then the speed."""
    outcomes = _WORST_FIRST
    place = outcomes.index(change.outcome) if change.outcome in outcomes else len(outcomes)
    return place, change.metric != speed


def change_text(change: Change) -> str:
    """Write '80.0 → 69.6 tok/s (-13 %)': both values in one unit."""
    before, after = change.before or 0.0, change.after or 0.0
    scale, unit = scale_of(max(before, after), change.unit)
    numbers = f"{format_number(before / scale)} → {format_number(after / scale)}"
    gap = "" if unit == "x" else " "
    return f"{numbers}{gap}{unit} ({signed_percent(change.ratio or after / before)})"


def signed_percent(ratio: float) -> str:
    """Write a ratio as the change that it is: '-13 %', '+0.4 %'."""
    share = ratio - 1
    sign = "-" if share < 0 else "+"
    return f"{sign}{format_percent(abs(share), 2)}"
