"""From the points of a series to one value a session: the unit in which histories are judged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_llmperf.core.verdicts import stats

if TYPE_CHECKING:
    from pytest_llmperf.history.queries import Point

MEASURED = frozenset({"PASS", "RECORDED", "UNDECIDED", "NOT COMPARABLE", "FAIL", "WAIVED"})
"""Outcomes of runs that were measured validly, whatever was thought of the result."""


class SessionValue(Struct, frozen=True, kw_only=True):
    """The median of a session's records of one series.

    `record_id` and `created` are those of the last.
    """

    session_id: str
    record_id: str
    created: str
    value: float
    unit: str


def session_values(points: Iterable[Point]) -> list[SessionValue]:
    """One value a session, oldest first; points without a value are left out."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        if point.value is not None:
            groups.setdefault(point.session_id, []).append(point)
    return sorted(
        map(_session_value, groups.values()), key=lambda each: (each.created, each.record_id)
    )


def _session_value(points: list[Point]) -> SessionValue:
    last = (
        points[0]
        if len(points) == 1
        else max(points, key=lambda point: (point.created, point.record_id))
    )
    return SessionValue(
        session_id=last.session_id,
        record_id=last.record_id,
        created=last.created,
        value=_median(points),
        unit=last.unit,
    )


def _median(points: list[Point]) -> float:
    values = [point.value for point in points if point.value is not None]
    return values[0] if len(values) == 1 else stats.median(values)
