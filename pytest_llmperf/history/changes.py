"""Changes of level in a stored series, and the drift from its anchor.

Change points inform; they accuse no commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.core.verdicts.change_points import ChangePoint, Drift, change_points, drift
from pytest_llmperf.history.accept import Acceptance, levels
from pytest_llmperf.history.models import by_model
from pytest_llmperf.history.results import MEASURED, Point
from pytest_llmperf.history.sessions import SessionValue, session_values

if TYPE_CHECKING:
    from pytest_llmperf.history.store import Store


class LevelChange(Struct, frozen=True, kw_only=True):
    """A change of level between two sessions that follow each other."""

    point: ChangePoint
    before: SessionValue
    after: SessionValue
    accepted: bool


class SeriesChanges(Struct, frozen=True, kw_only=True):
    """What happened to one metric of a series in one environment.

    `drift` is against the first, or the last accepted, level. `model` is empty unless one session
    measured several models of equal weights in this series: each has changes of its own.
    """

    environment_key: str
    model: str = ""
    unit: str
    n_sessions: int
    changes: tuple[LevelChange, ...]
    drift: Drift | None

    @property
    def unaccepted(self) -> bool:
        """Whether something changed that nobody accepted."""
        drifted = self.drift is not None and self.drift.significant
        return drifted or any(not change.accepted for change in self.changes)


def series_changes(
    store: Store,
    series: str,
    metric: str,
    accepted: tuple[Acceptance, ...],
    earlier: Sequence[str] = (),
) -> list[SeriesChanges]:
    """Return the changes of a metric, by environment and by model where it holds several.

    `earlier` are the keys that the series had before its test was renamed.

    Raises UsageError for values that are not positive and finite.
    """
    keys = (series, *earlier)
    points = [point for key in keys for point in store.points(key, metric)]
    return [
        replace(changes_of(key, values, starts_of(accepted, keys, points, own)), model=model)
        for model, own in by_model(points).items()
        for key, values in sessions_of(own).items()
    ]


def starts_of(
    accepted: Iterable[Acceptance],
    keys: Sequence[str],
    points: Iterable[Point],
    own: Iterable[Point],
) -> list[str]:
    """Return when accepted levels of these points of a series began.

    Those that were accepted for another model of the series are left out.
    """
    others = {point.record_id for point in points} - {point.record_id for point in own}
    return levels([one for one in accepted if one.record not in others], *keys)


def sessions_of(points: Iterable[Point]) -> dict[str, list[SessionValue]]:
    """Return the validly measured sessions of a series, oldest first, by environment key.

    Those of an environment are all by the definition of its newest: another one is another metric.
    """
    by_environment: dict[str, list[Point]] = {}
    for point in points:
        if point.outcome in MEASURED and point.value is not None:
            by_environment.setdefault(point.environment_key, []).append(point)
    return {key: session_values(_as_newest(place)) for key, place in by_environment.items()}


def _as_newest(points: Sequence[Point]) -> list[Point]:
    newest = max(points, key=lambda point: point.created)
    return [point for point in points if point.formula == newest.formula]


def changes_of(
    environment_key: str, sessions: Sequence[SessionValue], starts: Sequence[str]
) -> SeriesChanges:
    """Return what `series_changes` does for sessions of one environment that were read already.

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
    """Return a change of level, and whether it was accepted.

    It was if an accepted level starts after the last session before the change: that settles
    everything before it.
    """
    before, after = sessions[point.index - 1], sessions[point.index]
    accepted = any(start > before.created for start in starts)
    return LevelChange(point=point, before=before, after=after, accepted=accepted)


def _first_of_level(sessions: Sequence[SessionValue], starts: Sequence[str]) -> int:
    latest = max(starts, default="")
    return next(
        (index for index, session in enumerate(sessions) if session.created >= latest),
        0,
    )
