"""The accepted sessions that a record is held against, or why there are none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from pytest_llmperf.core.environment import differences
from pytest_llmperf.core.foreign_load import was_under_load
from pytest_llmperf.core.record import NOT_RUNS, MetricValue, Record
from pytest_llmperf.core.verdicts.against_history import (
    AcceptedValues,
)
from pytest_llmperf.core.verdicts.reach import (
    MAX_SESSIONS,
)
from pytest_llmperf.errors import StoreError
from pytest_llmperf.gate.past import (
    ACCEPTED,
    CLOCKS_DIFFER,
    AcceptedSessions,
    Past,
    Question,
    of_one_model,
    past_sessions,
)

if TYPE_CHECKING:
    from pytest_llmperf.gate.lineage import Lineage
    from pytest_llmperf.history.accept import Reviewed
    from pytest_llmperf.history.results import Point
    from pytest_llmperf.history.store import Store

# A session may have several records of a series, and failed ones are left out.
_POINTS = 20 * MAX_SESSIONS

# Of fields of a series, those that people read in another field.
_READABLE = {"workload_key": "workload_text"}


def accepted_sessions(
    store: Store | None, reviewed: Reviewed, question: Question
) -> AcceptedSessions:
    """Find what the metric is compared with.

    That is one value a session, of the same series, environment and definition.
    """
    if was_under_load(question.record):
        return _none("it was measured beside other programs (--llmperf-allow-load)")
    if store is None:
        return _none("no history is kept (--llmperf-store=none)")
    try:
        return _Search(store, reviewed, question).sessions()
    except StoreError as error:
        return _none(f"the history cannot be read: {error}")


class _Search(NamedTuple):
    """A search for the accepted sessions of a record's metric."""

    store: Store
    reviewed: Reviewed
    question: Question

    @property
    def record(self) -> Record:
        """What is judged."""
        return self.question.record

    @property
    def metric(self) -> MetricValue:
        """Its metric."""
        return self.question.metric

    def sessions(self) -> AcceptedSessions:
        keys = self.reviewed.keys(self.record)
        points = self._points(keys)
        earlier = [point for point in points if point.session_id != self.record.session_id]
        measured = [point for point in earlier if point.value is not None]
        definition = (self.metric.formula, self.metric.unit)
        same = [point for point in measured if (point.formula, point.unit) == definition]
        alike = of_one_model(same, points, self.record.model)
        past = self._past_sessions(alike)
        if not past.any_accepted:
            return _none(past.reason or self._why_none(keys, earlier, measured, same, alike))
        return past.remembered(self.question, self._starts(keys, alike, points))

    def _points(self, keys: Sequence[str]) -> list[Point]:
        """The series' points in this environment, newest first."""
        environment = self.record.environment_key
        points = [
            point
            for key in keys
            for point in self.store.points(
                key, self.metric.name, environment=environment, limit=_POINTS
            )
        ]
        return sorted(points, key=lambda point: point.created, reverse=True)

    def _past_sessions(self, points: Sequence[Point]) -> Past:
        facts = self.store.facts([point.record_id for point in points])
        return past_sessions(points, facts, self.question, self._accepted_records())

    def _accepted_records(self) -> set[str]:
        return {acceptance.record for acceptance in self.reviewed.accepted}

    def _starts(
        self, keys: Sequence[str], alike: Sequence[Point], points: Sequence[Point]
    ) -> list[str]:
        """When each accepted level began: not those that were accepted for another model."""
        # SQLAlchemy, only where something is gated.
        from pytest_llmperf.history.changes import starts_of  # noqa: PLC0415

        return starts_of(self.reviewed.accepted, keys, points, alike)

    def _why_none(
        self,
        keys: Sequence[str],
        earlier: Sequence[Point],
        measured: Sequence[Point],
        same: Sequence[Point],
        alike: Sequence[Point],
    ) -> str:
        if same and not alike:
            return f"the {len(same)} earlier runs are of other models than {self.record.model!r}"
        usable = [point for point in measured if point.outcome in ACCEPTED]
        if usable and not same:
            new, old = self.metric, usable[0]
            return (
                f"another definition: {new.formula} in {new.unit!r}, "
                f"was {old.formula} in {old.unit!r}"
            )
        if earlier and all(point.value is None for point in earlier):
            return f"the {len(earlier)} earlier runs could not measure it"
        if earlier:
            return (
                f"the {len(earlier)} earlier runs failed or were not valid, "
                "and none was accepted ('llmperf accept')"
            )
        return (
            self._other_environment(keys)
            or self._other_series()
            or "there is no earlier session of this test"
        )

    def _other_environment(self, keys: Sequence[str]) -> str:
        records = (record for key in keys for record in self.store.records(series=key))
        newest = self._newest(records)
        if newest is None:
            return ""
        facts = differences(self.record.environment, newest.environment)
        listed = ", ".join(f"{name} is {new!r}, was {old!r}" for name, new, old in facts)
        return f"another environment: {listed}"

    def _other_series(self) -> str:
        from pytest_llmperf.history.identity import SERIES_FIELDS  # noqa: PLC0415

        newest = self._newest(self.store.records(test=self.record.test, limit=_POINTS))
        if newest is None:
            return ""
        changed = [
            _READABLE.get(field, field)
            for field in SERIES_FIELDS
            if getattr(self.record, field) != getattr(newest, field)
        ]
        listed = ", ".join(
            f"{field} is {getattr(self.record, field)!r}, was {getattr(newest, field)!r}"
            for field in changed
        )
        return f"another measurement: {listed}"

    def _newest(self, records: Iterable[Record]) -> Record | None:
        """The first record that this session did not make."""
        return next((r for r in records if r.session_id != self.record.session_id), None)


def unmeasured(
    store: Store,
    reviewed: Reviewed,
    test: str,
    session_id: str,
    recorded: Sequence[Record],
    *,
    lineage: Lineage | None = None,
) -> list[Record]:
    """Runs of the test's last accepted session that this session has no counterpart of.

    `recorded` is what it has. Without a `lineage`, sessions of any branch and tree count.

    A run that took another's place (another workload, another strategy) is no counterpart, and none
    is missing for it: it is reported as what it is, a run without a history. Where a run was
    recorded, only runs of its environment count.
    """
    from pytest_llmperf.history.identity import series_key  # noqa: PLC0415

    environments = {record.environment_key for record in recorded}
    last = last_session(store, reviewed, test, {session_id}, environments, lineage=lineage)
    expected = {series_key(replace(record, test=test)): record for record in last}
    measured = {series_key(record) for record in recorded}
    missing = [record for key, record in expected.items() if key not in measured]
    n_in_place_of_others = len(measured - expected.keys())
    return missing[n_in_place_of_others:]


def last_session(
    store: Store,
    reviewed: Reviewed,
    test: str,
    sessions: set[str],
    environments: set[str],
    *,
    lineage: Lineage | None = None,
) -> list[Record]:
    """The runs of the test's newest accepted session that is none of `sessions`.

    It was made in one of `environments` (if any), and not on a day to come: that was a session
    whose clock was ahead. What a test measured before it was said to be
    removed is not among them, nor what its fixtures measured after it: that is not there yet when a
    test is judged.
    """
    from pytest_llmperf.history.identity import utc  # noqa: PLC0415

    removed = reviewed.removed_at(test)
    latest = utc((datetime.now(UTC) + CLOCKS_DIFFER).isoformat())

    def is_candidate(record: Record) -> bool:
        return (
            record.session_id not in sessions
            and record.outcome in ACCEPTED
            and utc(record.created) <= latest
            and (not environments or record.environment_key in environments)
            and utc(record.created) > removed
            and not (lineage and lineage.refuses(record.environment.facts))
        )

    session: list[Record] = []
    for name in reviewed.names(test):
        for record in filter(is_candidate, store.records(test=name, limit=_POINTS)):
            if session and record.session_id != session[0].session_id:
                break
            session.append(record)
    return list(filter(_is_run_of_test, session))


def _is_run_of_test(record: Record) -> bool:
    return record.workload.get("type") not in NOT_RUNS and "phase" not in record.extra


def _none(reason: str) -> AcceptedSessions:
    return AcceptedSessions(accepted=AcceptedValues(values=()), reason=reason)
