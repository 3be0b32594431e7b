"""Which sessions of a series are accepted, and which are held back. Pure.

A session that is worse than the limit, and that nothing has decided, is a suspicion. It moves
nothing: neither it nor any session after it is accepted until the suspicion is resolved. That is
when somebody accepts it, or when the sessions since then refute a worsening together: then all of
them are accepted, the suspicious ones too, but for those that failed. (To accept the others one by
one would keep what is worse out of the spread: unchanged sessions would fail ten times as often.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.core.verdicts.against_history import (
    LOOKS,
    AcceptedValues,
)
from pytest_llmperf.core.verdicts.distributions import t_quantile
from pytest_llmperf.core.verdicts.estimate import Direction
from pytest_llmperf.core.verdicts.reach import (
    MAX_SESSIONS,
    MIN_SESSIONS,
    log_limit,
    log_worse_of,
)
from pytest_llmperf.core.verdicts.spread import Spread, spread_of

_REFUTED = 0.95
_P_OUTLIER = 1e-4
_LEAST_OUTLIER = 0.1


class PastSession(Struct, frozen=True, kw_only=True):
    """A session of a series as it ended.

    `failed`: it regressed or its test failed, so that it is never accepted by itself. `accepted`:
    somebody said that it counts. `name` is for people to read, such as its record and date.
    """

    value: float
    name: str = ""
    failed: bool = False
    accepted: bool = False


class Memory(Struct, frozen=True, kw_only=True):
    """The sessions of a level that are accepted and those that are held back, oldest first.

    `earlier` are the accepted values of levels before it.
    """

    direction: Direction
    floor: float
    earlier: tuple[tuple[float, ...], ...] = ()
    accepted: tuple[PastSession, ...] = ()
    open: tuple[PastSession, ...] = ()

    @property
    def values(self) -> AcceptedValues:
        """What a new session is held against: the accepted ones but for an outlier."""
        outlier = self.outlier
        accepted = (session for session in self.accepted if session is not outlier)
        return AcceptedValues(
            values=tuple(session.value for session in accepted),
            earlier=self.earlier,
            open=_values(self.open),
        )

    @property
    def outlier(self) -> PastSession | None:
        """The one accepted session that is far from all the others, if there is exactly one.

        None that somebody said to count. Two that are far out hide each other, and stay: where
        sessions have two levels, none is an outlier.
        """
        if len(self.accepted) < MIN_SESSIONS:
            return None
        farthest = _farthest(self.accepted)
        return None if farthest.accepted or not _is_outlier(farthest, self.accepted) else farthest

    def followed_by(self, session: PastSession) -> Memory:
        """The memory after one more session."""
        if session.accepted:
            return replace(self, accepted=self._with_accepted([session]))
        if not self.open and not self._is_suspicious(session):
            return replace(self, accepted=self._with_accepted(_unfailed([session])))
        waiting = replace(self, open=(*self.open, session))
        return waiting.resolved() if waiting.refutes_a_worsening() else waiting

    def resolved(self) -> Memory:
        """The memory without its suspicion: what was held back is accepted, unless it failed."""
        return replace(self, accepted=self._with_accepted(_unfailed(self.open)), open=())

    def refutes_a_worsening(self) -> bool:
        """Whether the last sessions, some of those held back together, exclude a worsening."""
        spread = spread_of(self.values.levels)
        sizes = [n for n in LOOKS if n <= len(self.open)]
        return spread is not None and any(self._refutes(self.open[-n:], spread) for n in sizes)

    def _with_accepted(self, sessions: Sequence[PastSession]) -> tuple[PastSession, ...]:
        return (*self.accepted, *sessions)[-MAX_SESSIONS:]

    def _is_suspicious(self, session: PastSession) -> bool:
        """Whether it is worse than the limit, by sessions that are enough to say so."""
        levels = self.values.levels
        if not self.accepted or sum(map(len, levels)) < MIN_SESSIONS:
            return False
        return self._log_worse([session], levels[0]) > log_limit(self.floor, self.direction)

    def _refutes(self, sessions: Sequence[PastSession], spread: Spread) -> bool:
        """Whether these together exclude a worsening past the limit.

        Where sessions differ so much that ten unchanged ones could not, up to twice the limit.
        """
        center = self.values.levels[0]
        quantile = t_quantile(_REFUTED, spread.freedom)
        reach = quantile * spread.error(len(sessions), len(center))
        limit = log_limit(self.floor, self.direction)
        visible = 2 * quantile * spread.error(LOOKS[-1], len(center))
        bound = min(max(limit, visible), 2 * limit)
        return self._log_worse(sessions, center) + reach < bound

    def _log_worse(self, sessions: Sequence[PastSession], center: Sequence[float]) -> float:
        return log_worse_of(_values(sessions), _level(center), self.direction)


def remember(
    levels: Sequence[Sequence[PastSession]], *, direction: Direction, floor: float
) -> Memory:
    """Go through the sessions of a series, by level, oldest first.

    The first session of an accepted level is accepted.
    """
    memory = Memory(direction=direction, floor=floor)
    for level in levels:
        earlier = (*memory.earlier, _values(memory.accepted))
        memory = Memory(direction=direction, floor=floor, earlier=tuple(filter(None, earlier)))
        for session in level:
            memory = memory.followed_by(session)
    return memory


def _farthest(sessions: Sequence[PastSession]) -> PastSession:
    center = fmean(math.log(session.value) for session in sessions)
    return max(sessions, key=lambda session: abs(math.log(session.value) - center))


def _is_outlier(session: PastSession, sessions: Sequence[PastSession]) -> bool:
    """Test the session's distance from the others by their prediction interval (Grubbs 1950)."""
    others = [other.value for other in sessions if other is not session]
    spread = spread_of([others])
    if spread is None:
        return False
    distance = abs(log_worse_of([session.value], _level(others), "lower"))
    p = _P_OUTLIER / len(sessions)
    reach = t_quantile(1 - p / 2, spread.freedom) * spread.error(1, len(others))
    return distance > max(reach, _LEAST_OUTLIER)


def _level(values: Sequence[float]) -> float:
    return math.exp(fmean(map(math.log, values)))


def _unfailed(sessions: Sequence[PastSession]) -> list[PastSession]:
    return [session for session in sessions if not session.failed]


def _values(sessions: Sequence[PastSession]) -> tuple[float, ...]:
    return tuple(session.value for session in sessions)
