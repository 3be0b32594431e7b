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

from pytest_llmperf.core.verdicts.estimate import Direction
from pytest_llmperf.core.verdicts.judge import FLOOR, Outcome
from pytest_llmperf.core.verdicts.reach import (
    MAX_SESSIONS,
    MIN_SESSIONS,
    Reach,
    log_limit,
    log_twice,
    log_worse_of,
    one_sided,
    p_of_suspicion,
    relative,
)
from pytest_llmperf.core.verdicts.spread import spread_of
from pytest_llmperf.errors import UsageError

P_SINGLE = 0.001
FAMILY_ERROR = 0.01
LARGE_CHANGE = 0.10
LOOKS = (2, 3, 4, 6, 8, 10)
"""How many of the last sessions are held together against the accepted ones."""

# Of the limit of p: what makes a suspicion of the last sessions, and what then decides it.
_TOGETHER = 5.0
_TOGETHER_AGAIN = 10.0
_REFUTED = 0.95


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
    tells_visible: bool = True,
) -> Comparison:
    """Judge one session value. A suspicion is for `confirm` to decide.

    No session: NOT COMPARABLE. Below 8 sessions: UNDECIDED, unless the change is past 10 % and its
    p reaches the limit. PASS: a worsening past twice the floor is refuted. Anything else:
    UNDECIDED.

    `calibrated` is the spread of fresh runs of one session, where it is known. Simulations do
    without the smallest visible change, which takes nearly all of the time.

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
    reach = Reach(
        spread=spread,
        n_center=len(accepted.levels[0]),
        calibrated=calibrated,
        tells_visible=tells_visible,
    )
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
    tells_visible: bool = True,
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
    fresh = Reach(
        spread=spread,
        n_center=n_center,
        calibrated=calibrated,
        n_fresh=len(values),
        fresh=True,
        tells_visible=tells_visible,
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


def _judged(comparison: Comparison, reach: Reach, limit: float) -> Comparison:
    """Test a prediction: the new value and the center both vary."""
    log_worse, direction = _log_worse(comparison), comparison.direction
    p, excluded = reach.p(log_worse), max(0.0, log_worse) + reach.quantile(1 - _REFUTED)
    must_refute = log_twice(comparison.floor, direction)
    judged = replace(
        comparison,
        outcome=_outcome(comparison, log_worse, p <= limit, excluded <= must_refute),
        p=p,
        p_limit=limit,
        spread=reach.spread.value,
        refuted=relative(excluded, direction),
        must_refute=relative(must_refute, direction),
        smallest_visible=_smallest_visible(comparison, reach, limit),
    )
    if judged.outcome is Outcome.UNDECIDED:
        more_sessions = reach.more_sessions(log_worse, comparison.n, limit)
        return replace(judged, more_sessions=more_sessions)
    return judged


def _smallest_visible(comparison: Comparison, reach: Reach, limit: float) -> float | None:
    if not reach.tells_visible:
        return None
    log_worse = reach.smallest_visible(_least_log_worse(comparison), limit)
    return relative(log_worse, comparison.direction)


def _with_suspicion(
    comparison: Comparison, accepted: AcceptedValues, reach: Reach, limit: float
) -> Comparison:
    """Say whether fresh measurements should decide: of the value, or of the last sessions."""
    log_worse = _log_worse(comparison)
    is_worse = log_worse > _least_log_worse(comparison)
    alone = is_worse and reach.p(log_worse) <= p_of_suspicion(limit)
    together = 0 if alone else _together(comparison, accepted, reach, limit)
    if together and comparison.outcome is Outcome.PASS:
        comparison = replace(comparison, outcome=Outcome.UNDECIDED)
    return replace(
        comparison,
        suspected=alone or together > 0,
        together=together,
        n_open=len(accepted.open),
    )


def _together(comparison: Comparison, accepted: AcceptedValues, reach: Reach, limit: float) -> int:
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
        p = one_sided(log_worse, error, reach.spread.freedom)
        if log_worse > floor and p <= _TOGETHER * limit:
            return n
    return 0


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
