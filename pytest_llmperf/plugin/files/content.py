"""What a report is made of, from an open store: the records that were asked for, and the history of their series."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmperf.core.environment import MUST_MATCH
from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import UsageError
from pytest_llmperf.history import accept, changes
from pytest_llmperf.history.identity import series_key
from pytest_llmperf.history.sessions import SessionValue
from pytest_llmperf.report.html.content import Content, History, Level, Step, Unmeasured
from pytest_llmperf.report.html.runs import headline

_PAGE = 8

if TYPE_CHECKING:
    from pytest_llmperf.history.results import Series
    from pytest_llmperf.history.store import Store


def newest_of_each(store: Store, found: Iterable[Series], since: str | None = None) -> list[Record]:
    """The records of each series' newest session, by test and time.

    None older than `since` (UTC ISO 8601).
    """
    kept = [record for series in found for record in _newest_session(store, series.key, since)]
    return sorted(kept, key=lambda record: (record.test, record.created))


def _newest_session(store: Store, key: str, since: str | None) -> list[Record]:
    """A session has few records of one series: a page of them is read, and all only where they fill it."""
    for limit in (_PAGE, None):
        found = list(store.records(series=key, since=since, limit=limit))
        kept = [record for record in found if record.session_id == found[0].session_id]
        if len(kept) < _PAGE:
            break
    return kept


def content(
    records: Sequence[Record],
    *,
    scope: str,
    store: Store | None,
    root: Path,
    unmeasured: Sequence[Unmeasured] | None = None,
    metric: str | None = None,
    notes: Sequence[str] = (),
) -> Content:
    """A report on these records. Without a store there is no history.

    `metric` replaces the headline of each series.
    """
    histories = tuple(_histories(store, records, root, metric)) if store is not None else ()
    places = {record.environment_key: record.environment.facts for record in records}
    strange = {
        session.environment_key for history in histories for session in history.sessions
    } - places.keys()
    if store is not None:
        places |= {
            key: next(store.records(environment=key, limit=1)).environment.facts
            for key in sorted(strange)
        }
    return Content(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        scope=scope,
        store=store.shown if store is not None else "this session alone",
        records=tuple(records),
        unmeasured=None if unmeasured is None else tuple(unmeasured),
        histories=histories,
        places=places,
        comparable=MUST_MATCH,
        notes=tuple(notes),
    )


def _histories(
    store: Store, records: Sequence[Record], root: Path, metric: str | None
) -> Iterator[History]:
    reviewed = accept.reviewed(root)
    by_series = {series_key(record): record for record in records}
    for key, record in by_series.items():
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
    keys = (key, *earlier)
    points = [point for each in keys for point in store.points(each, metric)]
    sessions = changes.sessions_of(points)
    found = _changes(sessions, accept.levels(accepted, *keys))
    return History(
        key=key,
        test=record.test,
        label=record.label,
        workload=record.workload_text,
        strategy=record.strategy,
        model=record.model,
        metric=metric,
        unit=points[0].unit if points else "",
        sessions=tuple(
            sorted(chain.from_iterable(sessions.values()), key=lambda session: session.created)
        ),
        steps=tuple(
            sorted(
                (_step(change) for each in found for change in each.changes),
                key=lambda step: step.at,
            )
        ),
        levels=tuple(
            Level(at=each.created, who=each.who, why=each.why)
            for each in accepted
            if each.series in keys
        ),
        drift=_drift(found, record.environment_key),
    )


def _changes(
    sessions: Mapping[str, Sequence[SessionValue]], starts: Sequence[str]
) -> list[changes.SeriesChanges]:
    """Rule C by environment; a series whose values have no ratios has no changes of level."""
    try:
        return [changes.changes_of(key, values, starts) for key, values in sessions.items()]
    except UsageError:
        return []


def _step(change: changes.LevelChange) -> Step:
    point = change.point
    return Step(
        at=change.after.created, before=point.before, after=point.after, accepted=change.accepted
    )


def _drift(found: Sequence[changes.SeriesChanges], environment_key: str) -> float | None:
    here = next((each for each in found if each.environment_key == environment_key), None)
    return (
        here.drift.change
        if here is not None and here.drift is not None and here.drift.significant
        else None
    )
