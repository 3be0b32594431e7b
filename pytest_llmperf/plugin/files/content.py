"""What a report is made of, from an open store.

That is the records that were asked for, and the history of their series.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmperf.core.change import Change
from pytest_llmperf.core.environment import MUST_MATCH
from pytest_llmperf.core.record import Fact, Record
from pytest_llmperf.errors import UsageError
from pytest_llmperf.history import accept
from pytest_llmperf.history import changes as level_changes
from pytest_llmperf.history.identity import series_key
from pytest_llmperf.history.models import of_model
from pytest_llmperf.history.sessions import SessionValue
from pytest_llmperf.report.html.content import Content, History, Level, Step, Unmeasured
from pytest_llmperf.report.html.runs import headline

_PAGE = 8

if TYPE_CHECKING:
    from pytest_llmperf.history.results import Series
    from pytest_llmperf.history.store import Store


def newest_of_each(
    store: Store, series: Iterable[Series], since: str | None = None
) -> list[Record]:
    """Return the records of each series' newest session, by test and time.

    None is older than `since` (UTC ISO 8601).
    """
    records = [record for row in series for record in _newest_session(store, row.key, since)]
    return sorted(records, key=_test_and_time)


def _test_and_time(record: Record) -> tuple[str, str]:
    return record.test, record.created


def _newest_session(store: Store, key: str, since: str | None) -> list[Record]:
    """Return the records of a series' newest session.

    A session has few records of one series: a page of them is read, and all only where they fill
    it.
    """
    for limit in (_PAGE, None):
        newest = list(store.records(series=key, since=since, limit=limit))
        of_session = [record for record in newest if record.session_id == newest[0].session_id]
        if len(of_session) < _PAGE:
            break
    return of_session


def content(
    records: Sequence[Record],
    *,
    scope: str,
    store: Store | None,
    root: Path,
    unmeasured: Sequence[Unmeasured] | None = None,
    metric: str | None = None,
    notes: Sequence[str] = (),
    changes: Sequence[Change] = (),
    judged: str = "",
) -> Content:
    """Return the content of a report on these records. Without a store there is no history.

    `metric` replaces the headline of each series.
    """
    histories = tuple(_histories(store, records, root, metric)) if store is not None else ()
    return Content(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        scope=scope,
        store=store.public_url if store is not None else "this session alone",
        records=tuple(records),
        unmeasured=None if unmeasured is None else tuple(unmeasured),
        histories=histories,
        places=_places(store, records, histories),
        comparable=MUST_MATCH,
        notes=tuple(notes),
        changes=tuple(changes),
        judged=judged,
    )


def _places(
    store: Store | None, records: Sequence[Record], histories: Sequence[History]
) -> dict[str, dict[str, Fact]]:
    """Return the facts of every environment that a record or a session was made in, by its key."""
    places = {record.environment_key: record.environment.facts for record in records}
    if store is None:
        return places
    sessions = [session for history in histories for session in history.sessions]
    for key in sorted({session.environment_key for session in sessions} - places.keys()):
        record = next(store.records(environment=key, limit=1))
        places[key] = record.environment.facts
    return places


def _histories(
    store: Store, records: Sequence[Record], root: Path, metric: str | None
) -> Iterator[History]:
    reviewed = accept.reviewed(root)
    by_series = {(series_key(record), record.model): record for record in records}
    for (key, _model), record in by_series.items():
        _, *earlier = reviewed.keys(record)
        yield _history(store, key, record, metric or headline(record), reviewed.accepted, earlier)


def _history(
    store: Store,
    key: str,
    record: Record,
    metric: str,
    accepted: tuple[accept.Acceptance, ...],
    earlier: Sequence[str],
) -> History:
    """Return the history of one metric of a series; `earlier` are keys that it had before."""
    keys = (key, *earlier)
    all_points = [point for series in keys for point in store.points(series, metric)]
    points = of_model(all_points, record.model)
    sessions = level_changes.sessions_of(points)
    series_changes = _changes(sessions, level_changes.starts_of(accepted, keys, all_points, points))
    return History(
        key=key,
        test=record.test,
        label=record.label,
        workload=record.workload_text,
        strategy=record.strategy,
        model=record.model,
        metric=metric,
        unit=points[0].unit if points else "",
        sessions=_oldest_first(sessions),
        steps=_steps(series_changes),
        levels=_levels(accepted, keys),
        drift=_drift(series_changes, record.environment_key),
    )


def _changes(
    sessions: Mapping[str, Sequence[SessionValue]], starts: Sequence[str]
) -> list[level_changes.SeriesChanges]:
    """Return what rule C finds in each environment.

    A series whose values have no ratios has no changes of level.
    """
    try:
        return [level_changes.changes_of(key, values, starts) for key, values in sessions.items()]
    except UsageError:
        return []


def _oldest_first(sessions: Mapping[str, Sequence[SessionValue]]) -> tuple[SessionValue, ...]:
    """Return the sessions of all environments in the order of their time."""
    values = chain.from_iterable(sessions.values())
    return tuple(sorted(values, key=lambda session: session.created))


def _steps(series_changes: Sequence[level_changes.SeriesChanges]) -> tuple[Step, ...]:
    """Return the changes of level in all environments, oldest first."""
    steps = [_step(change) for series in series_changes for change in series.changes]
    return tuple(sorted(steps, key=lambda step: step.at))


def _step(change: level_changes.LevelChange) -> Step:
    point = change.point
    return Step(
        at=change.after.created, before=point.before, after=point.after, accepted=change.accepted
    )


def _levels(accepted: Sequence[accept.Acceptance], keys: Sequence[str]) -> tuple[Level, ...]:
    """Return the levels of these series that somebody accepted."""
    return tuple(
        Level(at=acceptance.created, who=acceptance.who, why=acceptance.why)
        for acceptance in accepted
        if acceptance.series in keys
    )


def _drift(
    series_changes: Sequence[level_changes.SeriesChanges], environment_key: str
) -> float | None:
    """Return the drift in this environment, where there is a significant one."""
    for series in series_changes:
        if series.environment_key == environment_key:
            return _significant_drift(series)
    return None


def _significant_drift(series: level_changes.SeriesChanges) -> float | None:
    drift = series.drift
    return drift.change if drift is not None and drift.significant else None
