"""Rule A: the value of a new session against those of up to 30 accepted sessions. Pure.

The unit is a session (a fresh process), never an iteration: iterations of one process share what
makes sessions differ, and pooling them fails about 30 % of unchanged benchmarks. On the logs, the
new value is held against Student's prediction interval of the accepted ones, in the direction that
is worse, and so is the mean of the last 2 to 10 sessions while a suspicion is open.

Either makes a suspicion, which three fresh measurements decide alone. A PASS is evidence too: a
worsening past twice the limit is refuted, by a session that could have shown one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from statistics import fmean, median

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.core.verdicts.distributions import t_cdf, t_quantile
from pytest_llmperf.core.verdicts.estimate import Direction
from pytest_llmperf.core.verdicts.judge import FLOOR, Outcome
from pytest_llmperf.core.verdicts.spread import NO_SPREAD, Spread, spread_of
from pytest_llmperf.errors import UsageError

MAX_SESSIONS = 30
MIN_SESSIONS = 8
P_SINGLE = 0.001
FAMILY_ERROR = 0.01
LARGE_CHANGE = 0.10
FRESH_RUNS = 3
"""How many fresh measurements decide a suspicion, pooled."""

LOOKS = (2, 3, 4, 6, 8, 10)
"""How many of the last sessions are held together against the accepted ones."""

QUIET = 0.025
"""The spread up to which fresh runs of one session are taken to differ as sessions do.

Above it, how they differ has to be calibrated: what a day has done to a machine is in all of them.
"""

# Of the limit of p: what makes a suspicion, alone and together, and what decides it.
_SUSPICION = 20.0
_TOGETHER = 5.0
_TOGETHER_AGAIN = 10.0
_REFUTED = 0.95
_POWER = 0.8
_NO_CHANGE = 1e-9
_BISECTIONS = 10


class AcceptedValues(Struct, frozen=True, kw_only=True):
    """Values of accepted sessions, oldest first.

    `values` are those since the last accepted change; `earlier` has one tuple a level before it.
    Accepting a change restarts the center and keeps the spread: earlier levels say how much
    sessions differ, not where they should be. `open` are the values of the sessions since a
    suspicion that nobody has resolved: they are not accepted, and are held together with the new
    one.
    """

    values: tuple[float, ...]
    earlier: tuple[tuple[float, ...], ...] = ()
    open: tuple[float, ...] = ()

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
    is one-sided and `p_limit` is what it had to reach; both are None without a spread. `refuted` is
    the worsening that the value excludes (95 %), and `must_refute` what a PASS has to.
    `smallest_visible` is the change that would have been found with a probability of 80 %, second
    measurement and all; None where none would. `more_sessions` would decide an undecided one, None
    if none would.

    `suspected` says that fresh measurements should decide, `together` how many of the last sessions
    made it so where the value alone did not. `again` is what those measurements say, and `n_runs`
    how many there were.
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
    refuted: float | None = None
    must_refute: float | None = None
    smallest_visible: float | None = None
    more_sessions: int | None = None
    suspected: bool = False
    together: int = 0
    n_open: int = 0
    n_runs: int = 1
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
    calibrated: float | None = None,
) -> Comparison:
    """Judge one session value. A suspicion is for `confirm` to decide.

    No session: NOT COMPARABLE. Below 8 sessions: UNDECIDED, unless the change is past 10 % and its
    p reaches the limit. PASS: a worsening past twice the floor is refuted. Anything else:
    UNDECIDED.

    `calibrated` is the spread of fresh runs of one session, where it is known.

    Raises:
        UsageError: a value is not positive and finite, the metric has no direction, the floor or
            limit is not in (0, 1).
    """
    _require(value, accepted, direction, floor, limit)
    if not accepted.values:
        return _not_comparable(value, direction, floor)
    comparison = _compared_with_mean(value, accepted, direction, floor)
    spread = spread_of(accepted.levels)
    if spread is None:
        return replace(comparison, more_sessions=MIN_SESSIONS - comparison.n)
    reach = _Reach(spread=spread, n_center=len(accepted.levels[0]), calibrated=calibrated)
    return _with_suspicion(_judged(comparison, reach, limit), accepted, reach, limit)


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
        return replace(comparison, outcome=Outcome.FAIL, suspected=True)
    return comparison


def confirm(
    first: Comparison,
    values: Sequence[float],
    accepted: AcceptedValues,
    *,
    calibrated: float | None = None,
) -> Comparison:
    """Judge a suspicion by `values`, fresh measurements, on those alone.

    They are pooled: their geometric mean is a FAIL where it is past the floor and its p is the
    session's limit or less (ten times that where the last sessions together made the suspicion).
    Their median has to be past the floor, too.
    Both are kept: the answer is the first with `again` set.

    Raises UsageError as `compare` does.
    """
    value = math.exp(fmean(map(math.log, values)))
    _require(value, accepted, first.direction, first.floor, P_SINGLE)
    comparison = _compared_with_mean(value, accepted, first.direction, first.floor)
    spread = spread_of(accepted.levels)
    assert spread is not None  # noqa: S101 - what is suspected was tested
    n_center = len(accepted.levels[0])
    fresh = _Reach(
        spread=spread, n_center=n_center, calibrated=calibrated, n_fresh=len(values), fresh=True
    )
    share = _TOGETHER_AGAIN if first.together else 1.0
    again = _judged(comparison, fresh, share * (first.p_limit or P_SINGLE))
    again = replace(again, n_runs=len(values))
    if again.outcome is Outcome.FAIL and not _is_past_floor(median(values), comparison):
        again = replace(again, outcome=Outcome.UNDECIDED)
    return replace(first, outcome=again.outcome, again=again)


def _is_past_floor(value: float, comparison: Comparison) -> bool:
    """Whether a value alone is worse than the floor: a mean may be so by one of its values."""
    log_worse = log_worse_of([value], comparison.center or 1.0, comparison.direction)
    return log_worse > _least_log_worse(comparison)


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


class _Reach(Struct, frozen=True, kw_only=True):
    """How far a value of a session, or the mean of fresh runs of one, may be from the center.

    `n_center` sessions made the center. `fresh` is for the mean of `n_fresh` runs in one session.
    """

    spread: Spread
    n_center: int
    calibrated: float | None = None
    n_fresh: int = FRESH_RUNS
    fresh: bool = False

    @property
    def error(self) -> float:
        """The standard error of the difference, in logs."""
        return self._error_of_fresh() if self.fresh else self.spread.error(1, self.n_center)

    def _error_of_fresh(self) -> float:
        """Runs of one session share what the day did to all; what they do not share is pooled."""
        between, own = self.spread.value, self._own_spread()
        shared = max(0.0, between**2 - own**2)
        pooled = own**2 / self.n_fresh
        center = max(own, between) ** 2 * self.spread.variance_of_mean(self.n_center)
        return math.sqrt(shared + pooled + center)

    def _own_spread(self) -> float:
        """The spread of fresh runs of one session: what they do not share.

        Runs of one session are at least as much alike as sessions that follow each other.
        """
        if self.calibrated is not None:
            return self.calibrated
        if self.spread.value > QUIET:
            return 0.0
        return self.spread.value * math.sqrt(1 - self.spread.autocorrelation)

    def quantile(self, p: float) -> float:
        """The distance that a value without a change exceeds with probability p."""
        return t_quantile(1 - p, self.spread.freedom) * self.error

    def p(self, log_worse: float) -> float:
        """The probability that a value without a change is as much worse, or more."""
        return _one_sided(log_worse, self.error, self.spread.freedom)


def _judged(comparison: Comparison, reach: _Reach, limit: float) -> Comparison:
    """Test a prediction: the new value and the center both vary."""
    log_worse, direction = _log_worse(comparison), comparison.direction
    p, excluded = reach.p(log_worse), max(0.0, log_worse) + reach.quantile(1 - _REFUTED)
    must_refute = _log_twice(comparison.floor, direction)
    judged = replace(
        comparison,
        outcome=_outcome(comparison, log_worse, p <= limit, excluded <= must_refute),
        p=p,
        p_limit=limit,
        spread=reach.spread.value,
        refuted=_relative(excluded, direction),
        must_refute=_relative(must_refute, direction),
        smallest_visible=_smallest_visible(comparison, reach, limit),
    )
    if judged.outcome is Outcome.UNDECIDED:
        more_sessions = _more_sessions(log_worse, reach, comparison.n, limit)
        return replace(judged, more_sessions=more_sessions)
    return judged


def _with_suspicion(
    comparison: Comparison, accepted: AcceptedValues, reach: _Reach, limit: float
) -> Comparison:
    """Say whether fresh measurements should decide: of the value, or of the last sessions."""
    log_worse = _log_worse(comparison)
    is_worse = log_worse > _least_log_worse(comparison)
    alone = is_worse and reach.p(log_worse) <= _suspicion(limit)
    together = 0 if alone else _together(comparison, accepted, reach, limit)
    if together and comparison.outcome is Outcome.PASS:
        comparison = replace(comparison, outcome=Outcome.UNDECIDED)
    return replace(
        comparison,
        suspected=alone or together > 0,
        together=together,
        n_open=len(accepted.open),
    )


def _suspicion(limit: float) -> float:
    """The p that a value alone has to reach to be measured again."""
    return min(0.5, _SUSPICION * limit)


def _together(comparison: Comparison, accepted: AcceptedValues, reach: _Reach, limit: float) -> int:
    """How many of the last sessions are worse together; 0 where none are.

    Only sessions since a suspicion count: those before it are what they are held against.
    """
    if comparison.n < MIN_SESSIONS:
        return 0
    floor = log_limit(comparison.floor, comparison.direction)
    last = (*accepted.open, comparison.value)
    for n in (n for n in LOOKS if n <= len(last)):
        log_worse = log_worse_of(last[-n:], comparison.center or 1.0, comparison.direction)
        error = reach.spread.error(n, reach.n_center)
        p = _one_sided(log_worse, error, reach.spread.freedom)
        if log_worse > floor and p <= _TOGETHER * limit:
            return n
    return 0


def log_worse_of(values: Sequence[float], center: float, direction: Direction) -> float:
    """Return the mean log of values / center, positive where they are worse."""
    log_ratio = fmean(map(math.log, values)) - math.log(center)
    return -log_ratio if direction == "higher" else log_ratio


def _log_worse(comparison: Comparison) -> float:
    """Return the log of value / center, positive where the value is worse."""
    assert comparison.center is not None  # noqa: S101 - there are accepted sessions
    return log_worse_of([comparison.value], comparison.center, comparison.direction)


def _least_log_worse(comparison: Comparison) -> float:
    """Return how much worse a FAIL has to be, in logs: by the floor, by 10 % of few sessions."""
    floor = comparison.floor
    if comparison.n < MIN_SESSIONS:
        floor = max(floor, LARGE_CHANGE)
    return log_limit(floor, comparison.direction)


def _outcome(comparison: Comparison, log_worse: float, significant: bool, refuted: bool) -> Outcome:
    if significant and log_worse > _least_log_worse(comparison):
        return Outcome.FAIL
    return Outcome.PASS if refuted and comparison.n >= MIN_SESSIONS else Outcome.UNDECIDED


def _smallest_visible(comparison: Comparison, reach: _Reach, limit: float) -> float:
    """Return the change that would be a suspicion and be confirmed, with a probability of 80 %."""
    fresh = reach if reach.fresh else replace(reach, fresh=True)
    least = _least_log_worse(comparison)
    first_reach = max(least, reach.quantile(_suspicion(limit)))
    fresh_reach = max(least, fresh.quantile(limit))

    def power(log_worse: float) -> float:
        first = _one_sided(first_reach - log_worse, reach.error, reach.spread.freedom)
        again = _one_sided(fresh_reach - log_worse, fresh.error, reach.spread.freedom)
        return first * again

    low, high = (
        max(
            first_reach + t_quantile(share, reach.spread.freedom) * reach.error,
            fresh_reach + t_quantile(share, reach.spread.freedom) * fresh.error,
        )
        for share in (_POWER, math.sqrt(_POWER))
    )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle) < _POWER else (low, middle)
    return _relative(high, comparison.direction)


def _one_sided(log_worse: float, error: float, freedom: int) -> float:
    # Equal sessions have no spread, but for the rounding of their logs.
    if error < NO_SPREAD:
        return 0.0 if log_worse > _NO_CHANGE else 1.0
    return t_cdf(-log_worse / error, freedom)


def _more_sessions(log_worse: float, reach: _Reach, n: int, limit: float) -> int | None:
    """Return how many more sessions like these would let this change pass the test.

    At least up to 8, at most up to 30.
    """
    value = reach.spread.value
    for total in range(max(n + 1, MIN_SESSIONS), MAX_SESSIONS + 1):
        error = value * math.sqrt(1 + 1 / total)
        if t_quantile(1 - limit, total - 1) * error <= log_worse:
            return total - n
    return MIN_SESSIONS - n if n < MIN_SESSIONS else None


def log_limit(floor: float, direction: Direction) -> float:
    """Return how much worse a share is in logs: 3 % less is 0.0305, 3 % more 0.0296."""
    return -math.log1p(-floor) if direction == "higher" else math.log1p(floor)


def _log_twice(floor: float, direction: Direction) -> float:
    """Twice the floor, in logs, where the metric is worse: at most twice as a share, too."""
    return 2 * log_limit(floor, direction) if direction == "higher" else math.log1p(2 * floor)


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
    for value in chain(accepted.values, accepted.open, *accepted.earlier):
        if not 0 < value < math.inf:
            raise UsageError(
                f"an accepted session holds {value!r}: "
                "a relative change needs positive, finite values.",
            )
