"""Rule A: the value of a new session against those of up to 30 accepted sessions. Pure.

The unit is a session (a fresh process), never an iteration: iterations of one process share what
makes sessions differ, and pooling them fails about 30 % of unchanged benchmarks. On the logs, the
new value is held against Student's prediction interval of the baseline, in the direction that is
worse. A FAIL needs a one-sided p of .001 (less in a large session: Holm 1979 at 1 % over all its
series), a change past the practical floor, and a second, fresh measurement that agrees.
"""

from __future__ import annotations

import math

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.distributions import t_cdf, t_quantile
from pytest_llmperf.core.verdicts.estimate import Direction
from pytest_llmperf.core.verdicts.judge import FLOOR, Outcome
from pytest_llmperf.errors import UsageError

MAX_SESSIONS = 30
MIN_SESSIONS = 8
P_SINGLE = 0.001
P_AGAIN = 0.01
FAMILY_ERROR = 0.01
LARGE_CHANGE = 0.10
_POWER = 0.8


class AcceptedValues(Struct, frozen=True, kw_only=True):
    """Values of accepted sessions, oldest first: `values` since the last accepted change, `earlier` one tuple a level before.

    Accepting a change restarts the center and keeps the spread: earlier levels say how much sessions differ, not where
    they should be.
    """

    values: tuple[float, ...]
    earlier: tuple[tuple[float, ...], ...] = ()

    @property
    def n(self) -> int:
        """Sessions that it rests on, at most 30."""
        return sum(map(len, self.levels))

    @property
    def levels(self) -> tuple[tuple[float, ...], ...]:
        """Its latest 30 sessions by level, the latest level first."""
        left, kept = MAX_SESSIONS, []
        for level in (self.values, *reversed(self.earlier)):
            kept.append(level[-left:] if left else ())
            left -= len(kept[-1])
        return tuple(level for level in kept if level)


class Comparison(Struct, frozen=True, kw_only=True):
    """A session value judged against its baseline.

    `change` is value / center - 1, `worse` the same seen from its bad side (positive: worse). `p`
    is one-sided, `p_limit` what it had to reach, both None without a spread. `smallest_visible` is
    the change that would have been found with a probability of 80 %, None where none would.
    `more_sessions` would decide an undecided one, None if none would.
    """

    outcome: Outcome
    value: float
    center: float | None
    n: int
    floor: float
    direction: Direction
    p: float | None = None
    p_limit: float | None = None
    spread: float | None = None
    smallest_visible: float | None = None
    more_sessions: int | None = None
    again: Comparison | None = None

    @property
    def change(self) -> float | None:
        """Value / center - 1: -0.05 is 5 % less. None without a baseline."""
        return None if self.center is None else self.value / self.center - 1

    @property
    def worse(self) -> float | None:
        """The change with the sign of its direction: 0.05 is 5 % less throughput, or 5 % more time."""
        return (
            None
            if self.change is None
            else (-self.change if self.direction == "higher" else self.change)
        )

    @property
    def suspicious(self) -> bool:
        """Worse by more than 10 %, so that too small a baseline is no reason to leave it: measure side by side (rule B)."""
        return (
            self.worse is not None
            and self.worse > max(LARGE_CHANGE, self.floor)
            and self.n < MIN_SESSIONS
        )


class _Spread(Struct, frozen=True):
    """Standard deviation of the logs of sessions about their level, and the degrees of freedom it rests on."""

    value: float
    freedom: int


def p_limit(family: int = 1, failed: int = 0) -> float:
    """The p that the next FAIL of a session has to reach: .001, or 1 % shared by the series not failed yet if that is less.

    Series come one by one, before all p are known. Those that pass these limits in any order are among those that Holm's
    procedure rejects once all are known, so that a session's error is at most 1 %.
    """
    if family < 1 or not 0 <= failed < family:
        raise UsageError(
            f"{failed} failed of a family of {family} series: at least one must be left to judge."
        )
    return min(P_SINGLE, FAMILY_ERROR / (family - failed))


def compare(
    value: float,
    accepted: AcceptedValues,
    *,
    direction: Direction,
    floor: float = FLOOR,
    limit: float = P_SINGLE,
) -> Comparison:
    """Judge one session value. A FAIL is a suspicion until `confirm` has seen it again.

    No session: NOT COMPARABLE. Below 8 sessions: UNDECIDED, unless the change is past 10 % and its
    p reaches the limit. PASS: not worse than the floor. Worse than the floor, but within what
    sessions differ by: UNDECIDED.

    Raises:
        UsageError: a value is not positive and finite, the metric has no direction, the floor or
            limit is not in (0, 1).
    """
    _require(value, accepted, direction, floor, limit)
    if not accepted.values:
        return Comparison(
            outcome=Outcome.NOT_COMPARABLE,
            value=value,
            center=None,
            n=0,
            floor=floor,
            direction=direction,
        )
    found = _located(value, accepted, direction, floor)
    spread = _spread(accepted)
    if spread is None:
        return replace(found, more_sessions=MIN_SESSIONS - found.n)
    return _judged(found, spread, len(accepted.levels[0]), limit)


def compare_counted(
    value: float, accepted: AcceptedValues, *, direction: Direction, floor: float
) -> Comparison:
    """Judge a counted quantity (bytes of weights), which sessions do not differ in: by the latest one and the floor alone.

    Raises UsageError as `compare`.
    """
    _require(value, accepted, direction, floor, P_SINGLE)
    if not accepted.values:
        return Comparison(
            outcome=Outcome.NOT_COMPARABLE,
            value=value,
            center=None,
            n=0,
            floor=floor,
            direction=direction,
        )
    found = Comparison(
        outcome=Outcome.PASS,
        value=value,
        center=accepted.values[-1],
        n=accepted.n,
        floor=floor,
        direction=direction,
    )
    worse = found.worse or 0.0
    return replace(
        found, outcome=Outcome.FAIL if worse > floor else Outcome.PASS, smallest_visible=floor
    )


def confirm(first: Comparison, value: float, accepted: AcceptedValues) -> Comparison:
    """A suspected FAIL after a fresh measurement of `value`: FAIL if that is past the floor and its p is .01 or less.

    Otherwise the second measurement decides, alone. Both are kept: the answer is the first with `again` set.
    """
    again = compare(value, accepted, direction=first.direction, floor=first.floor, limit=P_AGAIN)
    return replace(first, outcome=again.outcome, again=again)


def _located(
    value: float, accepted: AcceptedValues, direction: Direction, floor: float
) -> Comparison:
    center = math.exp(stats.mean([math.log(x) for x in accepted.levels[0]]))
    return Comparison(
        outcome=Outcome.UNDECIDED,
        value=value,
        center=center,
        n=accepted.n,
        floor=floor,
        direction=direction,
    )


def _judged(found: Comparison, spread: _Spread, n_center: int, limit: float) -> Comparison:
    """The prediction test: the new value and the center both vary."""
    assert found.center is not None  # noqa: S101 - there is a baseline
    error = spread.value * math.sqrt(1 + 1 / n_center)
    away = math.log(found.value / found.center) * (-1 if found.direction == "higher" else 1)
    p = _one_sided(away, error, spread.freedom)
    least = _log_floor(
        found.floor if found.n >= MIN_SESSIONS else max(found.floor, LARGE_CHANGE), found.direction
    )
    reach = max(least, t_quantile(1 - limit, spread.freedom) * error)
    outcome = _outcome(away, p, found, limit, least)
    return replace(
        found,
        outcome=outcome,
        p=p,
        p_limit=limit,
        spread=spread.value,
        smallest_visible=_relative(
            reach + t_quantile(_POWER, spread.freedom) * error, found.direction
        ),
        more_sessions=_more_sessions(away, spread, found.n, limit)
        if outcome is Outcome.UNDECIDED
        else None,
    )


def _outcome(away: float, p: float, found: Comparison, limit: float, least: float) -> Outcome:
    if p <= limit and away > least:
        return Outcome.FAIL
    if found.n < MIN_SESSIONS or away > _log_floor(found.floor, found.direction):
        return Outcome.UNDECIDED
    return Outcome.PASS


def _spread(accepted: AcceptedValues) -> _Spread | None:
    """Pooled over the levels, each about its own mean; None where no level has two sessions."""
    logs = [[math.log(x) for x in level] for level in accepted.levels]
    freedom = sum(len(level) - 1 for level in logs)
    if freedom < 1:
        return None
    squares = math.fsum((x - stats.mean(level)) ** 2 for level in logs for x in level)
    return _Spread(math.sqrt(squares / freedom), freedom)


def _one_sided(away: float, error: float, freedom: int) -> float:
    if error < 1e-12:  # noqa: PLR2004 - equal sessions, but for the rounding of their logs
        return 0.0 if away > 1e-9 else 1.0  # noqa: PLR2004
    return t_cdf(-away / error, freedom)


def _more_sessions(away: float, spread: _Spread, n: int, limit: float) -> int | None:
    """How many more sessions like these would let this change pass the test.

    At least up to 8, at most up to 30.
    """
    for total in range(max(n + 1, MIN_SESSIONS), MAX_SESSIONS + 1):
        if t_quantile(1 - limit, total - 1) * spread.value * math.sqrt(1 + 1 / total) <= away:
            return total - n
    return MIN_SESSIONS - n if n < MIN_SESSIONS else None


def _log_floor(floor: float, direction: Direction) -> float:
    return -math.log1p(-floor) if direction == "higher" else math.log1p(floor)


def _relative(log: float, direction: Direction) -> float:
    return -math.expm1(-log) if direction == "higher" else math.expm1(min(log, 700.0))


def _require(
    value: float, accepted: AcceptedValues, direction: Direction, floor: float, limit: float
) -> None:
    if direction not in ("higher", "lower"):
        raise UsageError(
            f"a metric of direction {direction!r} has no worse side: 'higher' or 'lower' is better, or do not gate it.",
        )
    if not 0 < value < math.inf:
        raise UsageError(
            f"the session's value is {value!r}: a relative change needs positive, finite values."
        )
    bad = next(
        (
            x
            for level in (accepted.values, *accepted.earlier)
            for x in level
            if not 0 < x < math.inf
        ),
        None,
    )
    if bad is not None:
        raise UsageError(
            f"the baseline holds {bad!r}: a relative change needs positive, finite values. Accept a new baseline for this series.",
        )
    for name, share in (("floor", floor), ("p limit", limit)):
        if not 0 < share < 1:
            raise UsageError(
                f"the {name} is {share!r}: a share between 0 and 1 is needed, 0.03 is 3 %."
            )
