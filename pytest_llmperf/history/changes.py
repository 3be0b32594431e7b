"""Rule C over a stored series: changes of level, and the drift from its anchor.

It informs; it accuses no commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_llmperf.core.verdicts.change_points import ChangePoint, Drift, change_points, drift
from pytest_llmperf.history.accept import Acceptance, levels
from pytest_llmperf.history.sessions import MEASURED, SessionValue, session_values

if TYPE_CHECKING:
    from pytest_llmperf.history.queries import Point
    from pytest_llmperf.history.store import Store


class LevelChange(Struct, frozen=True, kw_only=True):
    """A change of level between two sessions that follow each other."""

    point: ChangePoint
    before: SessionValue
    after: SessionValue
    accepted: bool


class SeriesChanges(Struct, frozen=True, kw_only=True):
    """What happened to one metric of a series in one environment.

    `drift` is against the first, or the last accepted, level.
    """

    environment_key: str
    unit: str
    n_sessions: int
    changes: tuple[LevelChange, ...]
    drift: Drift | None

    @property
    def unaccepted(self) -> bool:
        """Whether something changed that nobody accepted."""
        return any(not change.accepted for change in self.changes) or (
            self.drift is not None and self.drift.significant
        )


def series_changes(
    store: Store,
    series: str,
    metric: str,
    accepted: tuple[Acceptance, ...],
    earlier: Sequence[str] = (),
) -> list[SeriesChanges]:
    """The changes of a metric, by environment.

    `earlier` are the keys that the series had before its test was renamed.

    Raises UsageError for values that are not positive and finite.
    """
    keys = (series, *earlier)
    sessions = sessions_of(point for key in keys for point in store.points(key, metric))
    return [changes_of(key, values, levels(accepted, *keys)) for key, values in sessions.items()]


def sessions_of(points: Iterable[Point]) -> dict[str, list[SessionValue]]:
    """The validly measured sessions of a series, oldest first, by environment key."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        if point.outcome in MEASURED and point.value is not None:
            groups.setdefault(point.environment_key, []).append(point)
    return {key: session_values(found) for key, found in groups.items()}


def changes_of(
    environment_key: str, sessions: Sequence[SessionValue], starts: Sequence[str]
) -> SeriesChanges:
    """As `series_changes`, of sessions of one environment that were read already.

    `starts` are those of accepted levels.
    """
    values = [session.value for session in sessions]
    current = values[_first_of_level(sessions, starts) :]
    return SeriesChanges(
        environment_key=environment_key,
        unit=sessions[-1].unit,
        n_sessions=len(sessions),
        changes=tuple(_change(point, sessions, starts) for point in change_points(values)),
        drift=drift(current),
    )


def _change(
    point: ChangePoint, sessions: Sequence[SessionValue], starts: Sequence[str]
) -> LevelChange:
    """Accepted if a level was accepted that starts after the last session before the change: that settles all before it."""
    before, after = sessions[point.index - 1], sessions[point.index]
    accepted = any(start > before.created for start in starts)
    return LevelChange(point=point, before=before, after=after, accepted=accepted)


def _first_of_level(sessions: Sequence[SessionValue], starts: Sequence[str]) -> int:
    latest = max(starts, default="")
    return next((at for at, session in enumerate(sessions) if session.created >= latest), 0)
