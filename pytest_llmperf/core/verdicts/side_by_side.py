"""Rule B: two versions measured side by side, pair by pair, until the pairs decide. Pure.

Each pair is one fresh process of both versions in random order; its log ratio is positive where the
new version is worse. With S the sum and V the sum of squares of n log ratios, E = sqrt(1/(n+1))
((n+1)V / ((n+1)V - S^2))^(n/2) is an e-process of "no difference": the normal mixture of t
likelihood ratios (Lai 1976; Wang and Ramdas 2024). It may be looked at after each pair, and reaches
100 with a probability of 1 % at most. Pairs that are alike to their neighbours break that, so V is
widened by the pairs' own lag-1 autocorrelation before E is believed, for a FAIL as for a PASS.

Pairs of the same two processes are evidence about these two. Where a side cannot be started anew, a
verdict needs as much more as two processes of one program may differ by (docs/decisions/0021).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean, median
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.estimate import Direction
from pytest_llmperf.core.verdicts.judge import FLOOR, Outcome
from pytest_llmperf.errors import UsageError

MIN_PAIRS = 6
MAX_PAIRS = 30
E_FAIL = 100.0
E_PASS = 20.0
MARGIN = 0.02
_MAX_AUTOCORRELATION = 0.9
_MAX_EXPONENT = 700
_NO_SPREAD = 1e-12
_UNKNOWN_APART = 0.25
"""Log ratio that a FAIL of two single processes needs besides the floor where nothing is known.

Five processes of one eager model on one GPU differed by 0.24 at most (docs/explanation).
"""
_Z_FAIL = 3.09
_Z_PASS = 1.645
"""One-sided 0.1 % and 5 % of a normal: what a FAIL with its second look, and E = 20, stand for."""


class Decision(Struct, frozen=True, kw_only=True):
    """What the pairs say so far; `outcome` is None where another pair must be measured.

    `change` is the mean ratio new / base - 1, `worse` the same from its bad side (positive: worse),
    `median_worse` that of the median pair. `e_worse` is the evidence against "no difference",
    `e_not_worse` against "worse by `refuted`". `e_plain` is `e_worse` as it would be without
    autocorrelation. A worsening of `smallest_visible` would have been failed. `fresh` and
    `process_spread` are those of the SideBySide.
    """

    outcome: Outcome | None
    n: int
    change: float
    worse: float
    median_worse: float
    floor: float
    refuted: float
    e_worse: float
    e_not_worse: float
    e_plain: float
    autocorrelation: float
    smallest_visible: float
    fresh: bool = True
    process_spread: float | None = None

    @property
    def held_back(self) -> bool:
        """Whether autocorrelation alone keeps it from a FAIL: neighbouring pairs are alike."""
        return self.e_plain >= E_FAIL > self.e_worse


class SideBySide(Struct, frozen=True, kw_only=True):
    """The pairs so far: `log_ratios`, positive where the new version is worse.

    `floor` is the worsening that is let through.

    PASS means that a worsening of `floor` + 2 % is refuted. `evidence` is E of a FAIL: 100 for one
    series, 100 m for m. `fresh`: each pair has two processes of its own. Else all pairs are of the
    same two, and `process_spread` is how far processes are known to be apart (the standard
    deviation of their logs); None where nothing is known.
    """

    direction: Direction
    floor: float = FLOOR
    evidence: float = E_FAIL
    max_pairs: int = MAX_PAIRS
    fresh: bool = True
    process_spread: float | None = None
    log_ratios: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.direction not in ("higher", "lower"):
            raise UsageError(
                f"a metric of direction {self.direction!r} has no worse side: "
                "nothing can be judged side by side."
            )
        if not 0 < self.floor < 1 - MARGIN:
            raise UsageError(
                f"the floor is {self.floor!r}: "
                f"a share between 0 and {1 - MARGIN:g} is needed, 0.03 is 3 %."
            )
        if self.max_pairs < MIN_PAIRS:
            raise UsageError(
                f"a budget of {self.max_pairs} pairs cannot decide: "
                f"{MIN_PAIRS} are needed at least."
            )

    def with_pair(self, base: float, new: float) -> SideBySide:
        """Return this state with one more pair of values.

        Raises UsageError for values that are not positive and finite.
        """
        for side, value in (("base", base), ("new version", new)):
            if not 0 < value < math.inf:
                raise UsageError(
                    f"pair {len(self.log_ratios) + 1}: the {side} is {value!r}, "
                    "a ratio needs positive, finite values.",
                )
        worse = math.log(base / new) if self.direction == "higher" else math.log(new / base)
        return replace(self, log_ratios=(*self.log_ratios, worse))

    def with_pairs(self, pairs: Iterable[tuple[float, float]]) -> SideBySide:
        """Return this state with more pairs (base, new)."""
        state = self
        for base, new in pairs:
            state = state.with_pair(base, new)
        return state

    def of_one_process(self, process_spread: float | None) -> SideBySide:
        """Return this state where all pairs are of the same two processes."""
        return replace(self, fresh=False, process_spread=process_spread)

    def look(self) -> Decision | None:
        """Decide after the pairs so far; None before the first."""
        return _look(self) if self.log_ratios else None

    def visible_after(self, n: int) -> float:
        """Return the smallest worsening that `n` pairs would show which spread as those so far do.

        Raises ValueError for fewer pairs than there are, or where there is none.
        """
        measured = len(self.log_ratios)
        if not 0 < measured <= n:
            raise ValueError(f"{measured} pairs say nothing of {n}")
        moments = _moments(self.log_ratios)
        squares = moments.squares * (n - 1) / max(1, measured - 1)
        return _smallest_visible(moments._replace(n=n, squares=squares), self)


class _Moments(NamedTuple):
    """The mean of n log ratios and the sum of squares about it.

    `inflation` is what autocorrelation widens the squares by.
    """

    n: int
    mean: float
    squares: float
    inflation: float

    def log_e(self, null: float) -> float:
        """Return the log of E against "the mean log ratio is `null`"."""
        n, distance = self.n, self.mean - null
        log_scale = -0.5 * math.log(n + 1)
        squares = (n + 1) * (self.squares * self.inflation + n * distance * distance)
        if squares == 0:
            return log_scale
        return log_scale + n / 2 * math.log(squares / (squares - (n * distance) ** 2))


def _look(state: SideBySide) -> Decision:
    ratios, direction = state.log_ratios, state.direction
    r = _autocorrelation(ratios)
    plain = _moments(ratios)
    widened = plain._replace(inflation=(1 + r) / (1 - r))
    refuted = state.floor + MARGIN
    null = _log(refuted, direction) - _apart(state, _Z_PASS)
    decision = Decision(
        outcome=None,
        n=len(ratios),
        change=math.expm1(-plain.mean if direction == "higher" else plain.mean),
        worse=_relative(plain.mean, direction),
        median_worse=_relative(median(ratios), direction),
        floor=state.floor,
        refuted=refuted,
        e_worse=_evidence_of_worse(widened),
        e_not_worse=_evidence_of_not_worse(widened, null),
        e_plain=_evidence_of_worse(plain),
        autocorrelation=r,
        smallest_visible=_smallest_visible(widened, state),
        fresh=state.fresh,
        process_spread=state.process_spread,
    )
    return replace(decision, outcome=_outcome(decision, state) or _outcome_of_same(state))


def _outcome_of_same(state: SideBySide) -> Outcome | None:
    """Return UNDECIDED where more pairs of the same two processes would decide nothing.

    That is where they would have decided already, were they of fresh ones.
    """
    if state.fresh or _look(replace(state, fresh=True)).outcome is None:
        return None
    return Outcome.UNDECIDED


def _moments(ratios: tuple[float, ...]) -> _Moments:
    center = fmean(ratios)
    squares = math.fsum((ratio - center) ** 2 for ratio in ratios)
    return _Moments(len(ratios), center, squares, inflation=1.0)


def _evidence_of_worse(moments: _Moments) -> float:
    """Return E against "no difference"; 0 where the new version is not worse."""
    return _exp(moments.log_e(0.0)) if moments.mean > 0 else 0.0


def _evidence_of_not_worse(moments: _Moments, null: float) -> float:
    """Return E against "worse by `null`"; 0 where the new version is worse than that."""
    return _exp(moments.log_e(null)) if moments.mean < null else 0.0


def _outcome(decision: Decision, state: SideBySide) -> Outcome | None:
    if decision.n < MIN_PAIRS:
        return None
    if decision.e_worse >= state.evidence and _is_past_floor(decision, state):
        return Outcome.FAIL
    if decision.e_not_worse >= E_PASS:
        return Outcome.PASS
    return Outcome.UNDECIDED if decision.n >= state.max_pairs else None


def _is_past_floor(decision: Decision, state: SideBySide) -> bool:
    """Whether mean and median pair are worse than what is let through."""
    least = _log(state.floor, state.direction) + _apart(state, _Z_FAIL)
    worse = min(decision.worse, decision.median_worse)
    return worse > _relative(least, state.direction)


def _apart(state: SideBySide, z: float) -> float:
    """Return the log ratio that two processes of one program may have; 0 for fresh pairs.

    Where nothing is known it is large for a FAIL, and nothing is too large for a PASS.
    """
    if state.fresh:
        return 0.0
    if state.process_spread is None:
        return _UNKNOWN_APART if z == _Z_FAIL else math.inf
    return z * math.sqrt(2) * state.process_spread


def _autocorrelation(ratios: tuple[float, ...]) -> float:
    """Return the lag-1 autocorrelation with its bias of 1/n in short series (Kendall 1954).

    A negative one counts as 0, as that of ratios that are equal but for their rounding.
    """
    if len(ratios) < 3 or max(ratios) - min(ratios) < _NO_SPREAD:  # noqa: PLR2004
        return 0.0
    return min(_MAX_AUTOCORRELATION, max(0.0, stats.lag1_autocorrelation(ratios) + 1 / len(ratios)))


def _smallest_visible(moments: _Moments, state: SideBySide) -> float:
    """Return the mean worsening at which E reaches what a FAIL needs with this spread.

    At least the floor; 1 or inf where no worsening does. It is `log_e` solved for the mean.
    """
    n = moments.n
    needed = (state.evidence * math.sqrt(n + 1)) ** (2 / n)
    share = (n + 1) * (1 - 1 / needed)
    if share >= n:
        return _relative(math.inf, state.direction)
    squares = moments.squares * moments.inflation
    mean = math.sqrt(share * squares / (1 - share / n)) / n
    least = _log(state.floor, state.direction) + _apart(state, _Z_FAIL)
    return _relative(max(least, mean), state.direction)


def _log(worse: float, direction: Direction) -> float:
    return -math.log1p(-worse) if direction == "higher" else math.log1p(worse)


def _relative(log: float, direction: Direction) -> float:
    return -math.expm1(-log) if direction == "higher" else _exp(log) - 1


def _exp(x: float) -> float:
    # The largest exponent of a double is 709.
    return math.exp(x) if x < _MAX_EXPONENT else math.inf
