"""From the points of a series to one value a session: the unit in which histories are judged."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from msgspec import Struct

from pytest_llmperf.history.results import Point


class SessionValue(Struct, frozen=True, kw_only=True):
    """The median of a session's records of one series.

    `record_id`, `created` (UTC ISO 8601), `outcome` and `environment_key` are those of the last.
    """

    session_id: str
    record_id: str
    created: str
    outcome: str
    environment_key: str
    value: float
    unit: str


def session_values(points: Iterable[Point]) -> list[SessionValue]:
    """Return one value a session, oldest first; points without a value are left out."""
    points_by_session: dict[str, list[Point]] = {}
    for point in points:
        if point.value is not None:
            points_by_session.setdefault(point.session_id, []).append(point)
    values = map(_session_value, points_by_session.values())
    return sorted(values, key=lambda value: (value.created, value.record_id))


def _session_value(points: Sequence[Point]) -> SessionValue:
    last = _last(points)
    return SessionValue(
        session_id=last.session_id,
        record_id=last.record_id,
        created=last.created,
        outcome=last.outcome,
        environment_key=last.environment_key,
        value=_median(points),
        unit=last.unit,
    )


def _last(points: Sequence[Point]) -> Point:
    if len(points) == 1:
        return points[0]
    return max(points, key=lambda point: (point.created, point.record_id))


def _median(points: Sequence[Point]) -> float:
    values = [point.value for point in points if point.value is not None]
    return values[0] if len(values) == 1 else statistics.median(values)
