"""Rule A: the value of a new session against those of up to 30 accepted sessions. Pure.

The unit is a session (a fresh process), never an iteration: iterations of one process share what
makes sessions differ, and pooling them fails about 30 % of unchanged benchmarks. On the logs, the
new value is held against Student's prediction interval of the accepted ones, in the direction that
is worse. A FAIL needs a one-sided p of .001 (less in a large session: Holm 1979 at 1 % over all its
series), a change past the practical floor, and a second, fresh measurement that agrees.
"""

from __future__ import annotations

import math
from itertools import chain
from statistics import fmean

from msgspec import Struct
from msgspec.structs import replace

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
_NO_SPREAD = 1e-12
_NO_CHANGE = 1e-9


class AcceptedValues(Struct, frozen=True, kw_only=True):
    """Values of accepted sessions, oldest first.

    `values` are those since the last accepted change; `earlier` has one tuple a level before it.
    Accepting a change restarts the center and keeps the spread: earlier levels say how much
    sessions differ, not where they should be.
    """

    values: tuple[float, ...]
    earlier: tuple[tuple[float, ...], ...] = ()

    @property
    def n(self) -> int:
        """How many sessions it rests on, at most 30."""
        return sum(map(len, self.levels))

    @property
    def levels(self) -> tuple[tuple[float, ...], ...]:
        """Its latest 30 sessions by level, the latest level first."""
        levels: list[tuple[float, ...]] = []
        room = MAX_SESSIONS
        for level in (self.values, *reversed(self.earlier)):
            latest = level[-room:] if room else ()
            levels.append(latest)
            room -= len(latest)
        return tuple(filter(None, levels))


class Comparison(Struct, frozen=True, kw_only=True):
    """A session value judged against the accepted ones.

    `change` is value / center - 1, `worse` the same seen from its bad side (positive: worse). `p`
    is one-sided and `p_limit` is what it had to reach; both are None without a spread.
    `smallest_visible` is the change that would have been found with a probability of 80 %, None
    where none would. `more_sessions` would decide an undecided one, None if none would. `again` is
    the second measurement of a suspected FAIL.
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
        """Value / center - 1: -0.05 is 5 % less. None without accepted sessions."""
        return None if self.center is None else self.value / self.center - 1

    @property
    def worse(self) -> float | None:
        """The change from its bad side: 0.05 is 5 % less throughput, or 5 % more time."""
        if self.change is None:
            return None
        return -self.change if self.direction == "higher" else self.change

    @property
    def suspicious(self) -> bool:
        """Whether it is worse by more than 10 % and too few sessions were accepted to judge it.

        Measuring side by side (rule B) decides such a change.
        """
        large = max(LARGE_CHANGE, self.floor)
        return self.worse is not None and self.worse > large and self.n < MIN_SESSIONS


class _Spread(Struct, frozen=True):
    """How much sessions differ: the standard deviation of their logs about their level.

    `freedom` is the degrees of freedom that it rests on.
    """

    value: float
    freedom: int


def p_limit(family: int = 1, failed: int = 0) -> float:
    """Return the p below which the next series of a session may fail.

    The session judges `family` series in all, and `failed` of them have failed already: it is .001,
    or Holm's 1 % / (family - failed) where that is less. The limit rises as series fail, and may be
    used before all p are known: series that pass these limits in any order are among those that
    Holm's procedure rejects once all are known, so that a session's error is at most 1 %.
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
        return _not_comparable(value, direction, floor)
    comparison = _compared_with_mean(value, accepted, direction, floor)
    spread = _spread(accepted)
    if spread is None:
        return replace(comparison, more_sessions=MIN_SESSIONS - comparison.n)
    return _judged(comparison, spread, len(accepted.levels[0]), limit)


def compare_counted(
    value: float, accepted: AcceptedValues, *, direction: Direction, floor: float
) -> Comparison:
    """Judge a counted quantity, such as the bytes of weights, which sessions do not differ in.

    The latest accepted session and the floor alone decide. Raises UsageError as `compare` does.
    """
    _require(value, accepted, direction, floor, P_SINGLE)
    if not accepted.values:
        return _not_comparable(value, direction, floor)
    comparison = Comparison(
        outcome=Outcome.PASS,
        value=value,
        center=accepted.values[-1],
        n=accepted.n,
        floor=floor,
        direction=direction,
        smallest_visible=floor,
    )
    if (comparison.worse or 0.0) > floor:
        return replace(comparison, outcome=Outcome.FAIL)
    return comparison


def confirm(first: Comparison, value: float, accepted: AcceptedValues) -> Comparison:
    """Judge a suspected FAIL by `value`, a fresh measurement, alone.

    It stays a FAIL if that is past the floor and its p is .01 or less. Both are kept: the answer is
    the first with `again` set.
    """
    again = compare(value, accepted, direction=first.direction, floor=first.floor, limit=P_AGAIN)
    return replace(first, outcome=again.outcome, again=again)


def _not_comparable(value: float, direction: Direction, floor: float) -> Comparison:
    return Comparison(
        outcome=Outcome.NOT_COMPARABLE,
        value=value,
        center=None,
        n=0,
        floor=floor,
        direction=direction,
    )


def _compared_with_mean(
    value: float, accepted: AcceptedValues, direction: Direction, floor: float
) -> Comparison:
    """Compare with the geometric mean of the latest level; undecided so far."""
    center = math.exp(fmean(map(math.log, accepted.levels[0])))
    return Comparison(
        outcome=Outcome.UNDECIDED,
        value=value,
        center=center,
        n=accepted.n,
        floor=floor,
        direction=direction,
    )


def _judged(comparison: Comparison, spread: _Spread, n_center: int, limit: float) -> Comparison:
    """Test a prediction: the new value and the center, a mean of `n_center`, both vary."""
    error = spread.value * math.sqrt(1 + 1 / n_center)
    log_worse = _log_worse(comparison)
    p = _one_sided(log_worse, error, spread.freedom)
    judged = replace(
        comparison,
        outcome=_outcome(comparison, log_worse, significant=p <= limit),
        p=p,
        p_limit=limit,
        spread=spread.value,
        smallest_visible=_smallest_visible(comparison, error, spread.freedom, limit),
    )
    if judged.outcome is Outcome.UNDECIDED:
        more_sessions = _more_sessions(log_worse, spread, comparison.n, limit)
        return replace(judged, more_sessions=more_sessions)
    return judged


def _log_worse(comparison: Comparison) -> float:
    """Return the log of value / center, positive where the value is worse."""
    assert comparison.center is not None  # noqa: S101 - there are accepted sessions
    log_ratio = math.log(comparison.value / comparison.center)
    return -log_ratio if comparison.direction == "higher" else log_ratio


def _least_log_worse(comparison: Comparison) -> float:
    """Return how much worse a FAIL has to be, in logs: by the floor, by 10 % of few sessions."""
    floor = comparison.floor
    if comparison.n < MIN_SESSIONS:
        floor = max(floor, LARGE_CHANGE)
    return _log_floor(floor, comparison.direction)


def _outcome(comparison: Comparison, log_worse: float, *, significant: bool) -> Outcome:
    if significant and log_worse > _least_log_worse(comparison):
        return Outcome.FAIL
    past_floor = log_worse > _log_floor(comparison.floor, comparison.direction)
    return Outcome.UNDECIDED if past_floor or comparison.n < MIN_SESSIONS else Outcome.PASS


def _smallest_visible(comparison: Comparison, error: float, freedom: int, limit: float) -> float:
    """Return the change that would have been failed with a probability of 80 %."""
    significant = t_quantile(1 - limit, freedom) * error
    reach = max(_least_log_worse(comparison), significant)
    return _relative(reach + t_quantile(_POWER, freedom) * error, comparison.direction)


def _spread(accepted: AcceptedValues) -> _Spread | None:
    """Pool the spread of the levels, each about its own mean; None where none has two sessions."""
    levels = [[math.log(value) for value in level] for level in accepted.levels]
    freedom = sum(len(level) - 1 for level in levels)
    if freedom < 1:
        return None
    squares = math.fsum(square for level in levels for square in _squares_about_mean(level))
    return _Spread(math.sqrt(squares / freedom), freedom)


def _squares_about_mean(values: list[float]) -> list[float]:
    center = fmean(values)
    return [(value - center) ** 2 for value in values]


def _one_sided(log_worse: float, error: float, freedom: int) -> float:
    # Equal sessions have no spread, but for the rounding of their logs.
    if error < _NO_SPREAD:
        return 0.0 if log_worse > _NO_CHANGE else 1.0
    return t_cdf(-log_worse / error, freedom)


def _more_sessions(log_worse: float, spread: _Spread, n: int, limit: float) -> int | None:
    """Return how many more sessions like these would let this change pass the test.

    At least up to 8, at most up to 30.
    """
    for total in range(max(n + 1, MIN_SESSIONS), MAX_SESSIONS + 1):
        error = spread.value * math.sqrt(1 + 1 / total)
        if t_quantile(1 - limit, total - 1) * error <= log_worse:
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
            f"a metric of direction {direction!r} has no worse side: "
            "'higher' or 'lower' is better, or do not gate it.",
        )
    if not 0 < value < math.inf:
        raise UsageError(
            f"the session's value is {value!r}: a relative change needs positive, finite values."
        )
    _require_positive(accepted)
    for name, share in (("floor", floor), ("p limit", limit)):
        if not 0 < share < 1:
            raise UsageError(
                f"the {name} is {share!r}: a share between 0 and 1 is needed, 0.03 is 3 %."
            )


def _require_positive(accepted: AcceptedValues) -> None:
    for value in chain(accepted.values, *accepted.earlier):
        if not 0 < value < math.inf:
            raise UsageError(
                f"the baseline holds {value!r}: a relative change needs positive, finite values. "
                "Accept a new baseline for this series.",
            )
