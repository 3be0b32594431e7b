"""From the stored points of a series to the sessions that a new one is held against. Pure.

A session counts where its test passed or somebody accepted it, its tree was clean, it is of this
branch or of what this branch comes from, and its value and date can be. Sessions of this host come
first, for hosts of one kind differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from statistics import fmean
from typing import Any, NamedTuple

from msgspec import Struct

from pytest_llmperf.core.environment import covariates
from pytest_llmperf.core.format import format_value
from pytest_llmperf.core.record import Environment, Fact, MetricValue, Record
from pytest_llmperf.core.verdicts.against_history import (
    AcceptedValues,
)
from pytest_llmperf.core.verdicts.memory import Memory, PastSession, remember
from pytest_llmperf.core.verdicts.reach import (
    MIN_SESSIONS,
)
from pytest_llmperf.gate.lineage import Lineage
from pytest_llmperf.history.models import are_several
from pytest_llmperf.history.results import Point
from pytest_llmperf.history.sessions import session_values
from pytest_llmperf.settings.limits import DEFAULT_LIMITS

ACCEPTED = frozenset({"PASS", "RECORDED", "UNDECIDED", "NOT COMPARABLE", "XPASS"})
"""Outcomes of a test whose records later sessions are held against, unless they are held back."""

_FAILED = frozenset({"FAIL", "WAIVED"})
"""Outcomes of tests that were measured validly: such a session is not accepted by itself."""

CLOCKS_DIFFER = timedelta(days=1)
_CHANGED = ("driver", "python", "kernel", "host")
_VERSION = "version_"
_MOST_NAMED = 6

Facts = Mapping[str, Fact]


class Question(Struct, frozen=True, kw_only=True):
    """What is held against which sessions.

    `limit` is the share that the metric may be worse by: what is past it is held back. Without a
    `lineage`, sessions of any branch and tree count.
    """

    record: Record
    metric: MetricValue
    limit: float = DEFAULT_LIMITS["throughput"]
    lineage: Lineage | None = None

    @property
    def host(self) -> Fact:
        """Where the record was made."""
        return self.record.environment.facts.get("host")


class AcceptedSessions(Struct, frozen=True, kw_only=True):
    """The values of accepted sessions.

    Where there are none, `reason` says what is missing or which fact differs. `remarks` name what
    was left out or is held back, and how to put it back. `changed` names versions and the host that
    differ from those of the newest accepted session. `unit` is what each value is of.
    """

    accepted: AcceptedValues
    reason: str = ""
    remarks: tuple[str, ...] = ()
    changed: str = ""
    unit: str = "accepted session"


class StoredSession(NamedTuple):
    """A session of the series: its value, where it was made, and what stands against it.

    `by_hand`: somebody accepted it. `refused` says why it is not held against ("" if it is).
    """

    record_id: str
    created: str
    value: float
    unit: str
    facts: Facts
    failed: bool = False
    by_hand: bool = False
    refused: str = ""

    @property
    def name(self) -> str:
        """Its record and its date, for people."""
        return f"{self.record_id[:8]} of {self.created[:10]}"

    @property
    def past(self) -> PastSession:
        """The same as a memory takes it."""
        return PastSession(
            value=self.value, name=self.record_id, failed=self.failed, accepted=self.by_hand
        )


class Past(Struct, frozen=True, kw_only=True):
    """The sessions of a series that count, oldest first, and those that are left out."""

    sessions: tuple[StoredSession, ...]
    refused: tuple[StoredSession, ...]

    @property
    def reason(self) -> str:
        """Why no session counts, where some were left out."""
        if not self.refused:
            return ""
        return f"{_refusals(self.refused)}, and nothing else is stored"

    @property
    def any_accepted(self) -> bool:
        """Whether there is a session that did not fail."""
        return not all(session.failed for session in self.sessions)

    def remembered(self, question: Question, starts: Sequence[str]) -> AcceptedSessions:
        """What the new session is held against: `starts` are those of accepted levels."""
        mine, host_remark = _of_host(self.sessions, question.host)
        memory = _memory(mine, question, starts)
        accepted, unit = memory.values, "accepted session"
        if host_remark and not any(_is_of(session, question.host) for session in mine):
            accepted, unit = AcceptedValues(values=_host_means(mine, memory)), "other host"
        newest = _newest_accepted(mine, memory)
        remarks = (host_remark, *self._remarks(memory, mine))
        return AcceptedSessions(
            accepted=accepted,
            remarks=tuple(filter(None, remarks)),
            changed=_changed(question.record, newest.facts) if newest else "",
            unit=unit,
        )

    def _remarks(self, memory: Memory, sessions: Sequence[StoredSession]) -> Iterator[str]:
        by_record = {session.record_id: session for session in sessions}
        if memory.outlier is not None:
            yield _outlier_text(by_record[memory.outlier.name])
        if memory.open:
            yield _open_text([by_record[session.name] for session in memory.open])
        if self.refused:
            yield _refusals(self.refused)


def of_one_model(points: Sequence[Point], all_points: Sequence[Point], model: str) -> list[Point]:
    """The points of one series that are of this model.

    Models of equal weights share a series. Where one session measured several of them they are told
    apart by their names; else a name does not matter, as where a folder was renamed.
    """
    if not are_several(all_points):
        return list(points)
    return [point for point in points if point.model == model]


def past_sessions(
    points: Sequence[Point], facts: Mapping[str, Facts], question: Question, by_hand: set[str]
) -> Past:
    """Sort the sessions of a series into those that count and those that are left out.

    `facts` are those of each record's environment, `by_hand` the records that somebody accepted.
    """
    sessions = _stored_sessions(points, facts, by_hand)
    judged = [session._replace(refused=_refusal(session, question)) for session in sessions]
    return Past(
        sessions=tuple(session for session in judged if not session.refused),
        refused=tuple(session for session in judged if session.refused),
    )


def _stored_sessions(
    points: Sequence[Point], facts: Mapping[str, Facts], by_hand: set[str]
) -> list[StoredSession]:
    """One session a session id, oldest first; attempts that failed count where none passed."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.session_id, []).append(point)
    sessions = filter(None, (_stored_session(group, facts, by_hand) for group in groups.values()))
    return sorted(sessions, key=lambda session: (session.created, session.record_id))


def _stored_session(
    points: Sequence[Point], facts: Mapping[str, Facts], by_hand: set[str]
) -> StoredSession | None:
    usable = [point for point in points if _is_usable(point.value)] or points
    accepted = [point for point in usable if _is_accepted(point, by_hand)]
    chosen = accepted or [point for point in usable if point.outcome in _FAILED]
    if not chosen:
        return None
    (value,) = session_values(chosen)
    return StoredSession(
        record_id=value.record_id,
        created=value.created,
        value=value.value,
        unit=value.unit,
        facts=facts.get(value.record_id, {}),
        failed=not accepted,
        by_hand=any(point.record_id in by_hand for point in chosen),
    )


def _is_usable(value: float | None) -> bool:
    """Whether a relative change from it can be told."""
    return value is not None and 0 < value < math.inf


def _is_accepted(point: Point, by_hand: set[str]) -> bool:
    return point.outcome in ACCEPTED or point.record_id in by_hand


def _refusal(session: StoredSession, question: Question) -> str:
    if not _is_usable(session.value):
        return f"with a value of {format_value(session.value, session.unit)}"
    if session.by_hand:
        return ""
    if _time(session.created) > _time(question.record.created) + CLOCKS_DIFFER:
        return f"dated {session.created[:10]}, after this one"
    return "" if question.lineage is None else question.lineage.refuses(session.facts)


def _time(created: str) -> datetime:
    time = datetime.fromisoformat(created)
    return time if time.tzinfo else time.astimezone()


def _memory(sessions: Sequence[StoredSession], question: Question, starts: Sequence[str]) -> Memory:
    def level(session: StoredSession) -> int:
        return sum(session.created >= start for start in starts)

    levels = [[one.past for one in group] for _, group in groupby(sessions, key=level)]
    direction: Any = question.metric.direction
    return remember(levels, direction=direction, floor=question.limit)


def _of_host(sessions: Sequence[StoredSession], host: Fact) -> tuple[list[StoredSession], str]:
    """The sessions to be held against on this host, and what is to be said of that.

    Those of this host, where they are enough; all of them, where they are of so many hosts that
    their spread says how much hosts differ, or where hosts are not known.
    """
    mine = [session for session in sessions if _is_of(session, host)]
    hosts = {session.facts.get("host") for session in sessions} - {None}
    if len(mine) == len(sessions):
        return mine, ""
    if sum(not session.failed for session in mine) >= MIN_SESSIONS:
        return mine, ""
    if len(hosts) >= MIN_SESSIONS:
        return list(sessions), ""
    others = ", ".join(sorted(map(str, hosts - {host})))
    if mine:
        return mine, f"the other sessions are of other hosts ({others}), which may differ"
    return list(sessions), f"all of them of other hosts than {host} ({others}), which may differ"


def _is_of(session: StoredSession, host: Fact) -> bool:
    """Whether a session is of this host, as far as either is known."""
    return host is None or session.facts.get("host") in (None, host)


def _host_means(sessions: Sequence[StoredSession], memory: Memory) -> tuple[float, ...]:
    """The mean of each host's accepted sessions: for another host, a host is what may vary."""
    accepted = {session.name for session in memory.accepted}
    hosts: dict[Fact, list[float]] = {}
    for session in sessions:
        if session.record_id in accepted:
            hosts.setdefault(session.facts.get("host"), []).append(math.log(session.value))
    return tuple(math.exp(fmean(logs)) for logs in hosts.values())


def _newest_accepted(sessions: Iterable[StoredSession], memory: Memory) -> StoredSession | None:
    accepted = {session.name for session in memory.accepted}
    *_, newest = [None, *(one for one in sessions if one.record_id in accepted)]
    return newest


def _changed(record: Record, facts: Facts) -> str:
    """The versions, the driver and the host that differ from those of an earlier session."""
    earlier = Environment(facts=dict(facts))
    named = [
        f"{name.removeprefix(_VERSION)} is {new}, was {old}"
        for name, new, old in covariates(record.environment, earlier)
        if (name in _CHANGED or name.startswith(_VERSION)) and None not in (new, old)
    ]
    rest = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return ", ".join(named[:_MOST_NAMED]) + rest


def _outlier_text(session: StoredSession) -> str:
    value = format_value(session.value, session.unit)
    return (
        f"left out: {session.name}, {value}, far from all the others "
        f"('llmperf accept --include {session.record_id[:8]} --reason …' puts it back)"
    )


def _open_text(sessions: Sequence[StoredSession]) -> str:
    n, first = len(sessions), sessions[0]
    what = "1 session is" if n == 1 else f"{n} sessions are"
    return (
        f"{what} held back since {first.name} was worse than the limit "
        f"('llmperf accept --include {first.record_id[:8]} --reason …' accepts it)"
    )


def _refusals(sessions: Sequence[StoredSession]) -> str:
    """How many sessions are left out for what, the newest of each named."""
    reasons: dict[str, list[StoredSession]] = {}
    for session in sessions:
        reasons.setdefault(session.refused, []).append(session)
    return "; ".join(_refused_text(reason, group) for reason, group in reasons.items())


def _refused_text(reason: str, sessions: Sequence[StoredSession]) -> str:
    n, newest = len(sessions), sessions[-1]
    what = f"1 session {reason} is" if n == 1 else f"{n} sessions {reason} are"
    how = f", 'llmperf accept --include {newest.record_id[:8]} --reason …' takes it in"
    return f"{what} left out ({newest.name}{how if _is_usable(newest.value) else ''})"
