"""The accepted sessions that a record is held against, or why there are none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from pytest_llmperf.core.environment import differences
from pytest_llmperf.core.record import NOT_RUNS, MetricValue, Record
from pytest_llmperf.core.verdicts.against_history import MAX_SESSIONS, AcceptedValues
from pytest_llmperf.errors import StoreError
from pytest_llmperf.history.sessions import session_values

if TYPE_CHECKING:
    from pytest_llmperf.history.accept import Reviewed
    from pytest_llmperf.history.queries import Point
    from pytest_llmperf.history.store import Store

ACCEPTED = frozenset({"PASS", "RECORDED", "UNDECIDED", "NOT COMPARABLE", "XPASS"})
"""Outcomes of a test whose records later sessions are held against.

A regression is no baseline until it is accepted.
"""

# A session may have several records of a series, and failed ones are left out.
_POINTS = 20 * MAX_SESSIONS


class Held(Struct, frozen=True, kw_only=True):
    """A baseline; where it is empty, `reason` says what is missing or which fact differs."""

    accepted: AcceptedValues
    reason: str = ""


def held(store: Store | None, reviewed: Reviewed, record: Record, metric: MetricValue) -> Held:
    """What `metric` of `record` is compared with: one value a session, of the same series, environment and definition."""
    if store is None:
        return _none("no history is kept (--llmperf-store=none)")
    try:
        return _held(store, reviewed, record, metric)
    except StoreError as error:
        return _none(f"the history cannot be read: {error}")


def _held(store: Store, reviewed: Reviewed, record: Record, metric: MetricValue) -> Held:
    # SQLAlchemy, only where something is gated.
    from pytest_llmperf.history.accept import levels  # noqa: PLC0415

    keys = reviewed.keys(record)
    of_keys = (
        store.points(key, metric.name, environment=record.environment_key, limit=_POINTS)
        for key in keys
    )
    points = sorted(
        (point for points in of_keys for point in points),
        key=lambda point: point.created,
        reverse=True,
    )
    earlier = [point for point in points if point.session_id != record.session_id]
    named = {each.record for each in reviewed.accepted}
    good = (point for point in earlier if point.outcome in ACCEPTED or point.record_id in named)
    usable = [point for point in good if point.value is not None]
    same = [
        point for point in usable if (point.formula, point.unit) == (metric.formula, metric.unit)
    ]
    if not same:
        return _none(_why_none(store, keys, record, metric, earlier, usable))
    return Held(accepted=_levels(same, levels(reviewed.accepted, *keys)))


def _levels(points: Sequence[Point], starts: Sequence[str]) -> AcceptedValues:
    """Session values, oldest first, cut where a change was accepted."""
    cut: dict[int, list[float]] = {}
    for session in session_values(points):
        cut.setdefault(sum(session.created >= start for start in starts), []).append(session.value)
    *earlier, latest = (tuple(values) for _, values in sorted(cut.items()))
    return AcceptedValues(values=latest, earlier=tuple(earlier))


def _why_none(
    store: Store,
    keys: Sequence[str],
    record: Record,
    metric: MetricValue,
    earlier: Sequence[Point],
    usable: Sequence[Point],
) -> str:
    if usable:
        other = usable[0]
        return f"the baseline is {other.formula} in {other.unit!r}, this is {metric.formula} in {metric.unit!r}"
    if earlier:
        missing = all(point.value is None for point in earlier)
        what = (
            "could not measure it"
            if missing
            else "failed or were not valid; 'llmperf accept' makes a new baseline"
        )
        return f"the {len(earlier)} earlier runs {what}"
    return (
        _other_environment(store, keys, record)
        or _other_series(store, record)
        or "there is no earlier session of this test"
    )


def _other_environment(store: Store, keys: Sequence[str], record: Record) -> str:
    others = (
        other
        for key in keys
        for other in store.records(series=key)
        if other.session_id != record.session_id
    )
    newest = next(others, None)
    if newest is None:
        return ""
    named = (
        f"{name} is {here!r}, the baseline's {there!r}"
        for name, here, there in differences(record.environment, newest.environment)
    )
    return f"another environment: {', '.join(named)}"


def _other_series(store: Store, record: Record) -> str:
    from pytest_llmperf.history.identity import SERIES_FIELDS  # noqa: PLC0415

    others = (
        other
        for other in store.records(test=record.test, limit=_POINTS)
        if other.session_id != record.session_id
    )
    newest = next(others, None)
    if newest is None:
        return ""
    shown = {"workload_key": "workload_text"}
    named = (
        f"{field} is {getattr(record, shown.get(field, field))!r}, was {getattr(newest, shown.get(field, field))!r}"
        for field in SERIES_FIELDS
        if getattr(record, field) != getattr(newest, field)
    )
    return f"another measurement: {', '.join(named)}"


def unmeasured(
    store: Store, reviewed: Reviewed, test: str, session_id: str, made: Sequence[Record]
) -> list[Record]:
    """Runs of the test's last accepted session that this session has no counterpart of.

    `made` is what it recorded.

    A run that took another's place (another workload, another strategy) is no counterpart, and none
    is missing for it: it is reported as what it is, a run without a history. Where a run was made,
    only runs of its environment count.
    """
    from pytest_llmperf.history.identity import series_key  # noqa: PLC0415

    last = last_session(
        store, reviewed, test, {session_id}, {record.environment_key for record in made}
    )
    expected = {series_key(msgspec.structs.replace(record, test=test)): record for record in last}
    here = {series_key(record) for record in made}
    missing = [record for key, record in expected.items() if key not in here]
    return missing[len(here - expected.keys()) :]


def last_session(
    store: Store, reviewed: Reviewed, test: str, sessions: set[str], environments: set[str]
) -> list[Record]:
    """The runs of the test's newest accepted session that is none of `sessions`, in one of `environments` (if any).

    What a test measured before it was said to be removed is not among them, nor what its fixtures measured after it:
    that is not there yet when a test is judged.
    """
    from pytest_llmperf.history.identity import utc  # noqa: PLC0415

    found: list[Record] = []
    removed = reviewed.removed_at(test)
    for name in reviewed.names(test):
        for record in store.records(test=name, limit=_POINTS):
            elsewhere = environments and record.environment_key not in environments
            if (
                record.session_id in sessions
                or record.outcome not in ACCEPTED
                or elsewhere
                or utc(record.created) <= removed
            ):
                continue
            if found and record.session_id != found[0].session_id:
                break
            found.append(record)
    return [
        record
        for record in found
        if record.workload.get("type") not in NOT_RUNS and "phase" not in record.extra
    ]


def _none(reason: str) -> Held:
    return Held(accepted=AcceptedValues(values=()), reason=reason)
