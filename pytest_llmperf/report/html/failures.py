"""What a failure shows at the top: the metric before and after, and its last sessions as a line."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from pytest_llmperf.core.change import Change, stored_changes
from pytest_llmperf.core.format import format_value
from pytest_llmperf.core.record import ClaimRecord, Record
from pytest_llmperf.report.before_after import change_text
from pytest_llmperf.report.html.content import Content, History

WIDTH, HEIGHT = 120, 28
_LATEST = 20
_LEAST = 3
"""Fewer sessions make no line."""


class Line(Struct, frozen=True, kw_only=True):
    """A small line of the last sessions: points of an SVG polyline, its end, and what it says."""

    points: str
    end: tuple[float, float]
    title: str


def change_of(content: Content, record: Record, claim: ClaimRecord) -> str:
    """Return '80.0 → 69.6 tok/s (-13 %)' of the metric that a claim is about; "" if not known."""
    metric = claim.text.partition(" of ")[0]
    for change in (*stored_changes(record), *_gated(content, record)):
        if change.metric == metric and change.before and change.after is not None:
            return change_text(change)
    return ""


def _gated(content: Content, record: Record) -> Iterator[Change]:
    run = (record.test, record.label, record.strategy, record.workload_text)
    for change in content.changes:
        if (change.test, change.label, change.strategy, change.workload_text) == run:
            yield change


def line_of(content: Content, record: Record, claim: ClaimRecord) -> Line | None:
    """Return the history of the metric that a claim is about as a small line."""
    metric = claim.text.partition(" of ")[0]
    for history in content.histories:
        same = (history.test, history.label, history.strategy, history.workload, history.metric)
        if same == (record.test, record.label, record.strategy, record.workload_text, metric):
            return _line(history)
    return None


def _line(history: History) -> Line | None:
    values = [session.value for session in history.sessions[-_LATEST:]]
    if len(values) < _LEAST:
        return None
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = (WIDTH - 8) / (len(values) - 1)
    points = [
        (round(4 + index * step, 1), round(HEIGHT - 4 - (value - low) / span * (HEIGHT - 8), 1))
        for index, value in enumerate(values)
    ]
    ends = f"{format_value(low, history.unit)} to {format_value(high, history.unit)}"
    now = format_value(values[-1], history.unit)
    return Line(
        points=" ".join(f"{x},{y}" for x, y in points),
        end=points[-1],
        title=f"the last {len(values)} sessions: {ends}, now {now}",
    )
