"""Rule B: two versions measured side by side, pair by pair, until the pairs decide. Pure.

Each pair is one fresh block of both versions in random order; its log ratio is positive where the
new version is worse. With S the sum and V the sum of squares of n log ratios, E = sqrt(1/(n+1))
((n+1)V / ((n+1)V - S^2))^(n/2) is an e-process of "no difference": the normal mixture of t
likelihood ratios (Lai 1976; Wang and Ramdas 2024). It may be looked at after each pair, and reaches
100 with a probability of 1 % at most. Pairs that are alike to their neighbours break that, so V is
widened by the pairs' own lag-1 autocorrelation before E is believed, for a FAIL as for a PASS.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
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


class Decision(Struct, frozen=True, kw_only=True):
    """What the pairs say so far. `outcome` None: measure another pair.

    `change` is the mean ratio new / base - 1, `worse` the same from its bad side (positive: worse),
    `median_worse` that of the median pair. `e_worse` is the evidence against "no difference",
    `e_not_worse` against "worse by `refuted`". `e_plain` is `e_worse` as it would be without
    autocorrelation. `smallest_visible` would have been failed.
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

    @property
    def held_back(self) -> bool:
        """Autocorrelation alone keeps it from a FAIL: the pairs are alike to their neighbours."""
        return self.e_plain >= E_FAIL > self.e_worse


class SideBySide(Struct, frozen=True, kw_only=True):
    """The pairs so far: `log_ratios`, positive where the new version is worse.

    `floor` is the worsening that is let through.

    PASS means that a worsening of `floor` + 2 % is refuted. `evidence` is E of a FAIL: 100 for one
    series, 100 m for m.
    """

    direction: Direction
    floor: float = FLOOR
    evidence: float = E_FAIL
    max_pairs: int = MAX_PAIRS
    log_ratios: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.direction not in ("higher", "lower"):
            raise UsageError(
                f"a metric of direction {self.direction!r} has no worse side: nothing can be judged side by side."
            )
        if not 0 < self.floor < 1 - MARGIN:
            raise UsageError(
                f"the floor is {self.floor!r}: a share between 0 and {1 - MARGIN:g} is needed, 0.03 is 3 %."
            )
        if self.max_pairs < MIN_PAIRS:
            raise UsageError(
                f"a budget of {self.max_pairs} pairs cannot decide: {MIN_PAIRS} are needed at least."
            )

    def with_pair(self, base: float, new: float) -> SideBySide:
        """Add one pair of values to this state.

        Raises UsageError for values that are not positive and finite.
        """
        for side, value in (("base", base), ("new version", new)):
            if not 0 < value < math.inf:
                raise UsageError(
                    f"pair {len(self.log_ratios) + 1}: the {side} is {value!r}, a ratio needs positive, finite values.",
                )
        worse = math.log(base / new) if self.direction == "higher" else math.log(new / base)
        return replace(self, log_ratios=(*self.log_ratios, worse))

    def with_pairs(self, pairs: Iterable[tuple[float, float]]) -> SideBySide:
        """Add pairs (base, new) to this state."""
        state = self
        for base, new in pairs:
            state = state.with_pair(base, new)
        return state

    def look(self) -> Decision | None:
        """The decision after the pairs so far; None before the first."""
        return _look(self) if self.log_ratios else None


class _Moments(NamedTuple):
    """Of n log ratios: their mean, sum of squares about it, and by how much autocorrelation widens that."""

    n: int
    mean: float
    squares: float
    inflation: float

    def log_e(self, null: float) -> float:
        """Log of E against "the mean log ratio is `null`"."""
        about = self.mean - null
        v = self.squares * self.inflation + self.n * about * about
        if v == 0:
            return -0.5 * math.log(self.n + 1)
        rest = (self.n + 1) * v - (self.n * about) ** 2
        return -0.5 * math.log(self.n + 1) + self.n / 2 * math.log((self.n + 1) * v / rest)


def _look(state: SideBySide) -> Decision:
    ratios = state.log_ratios
    r = _autocorrelation(ratios)
    center = stats.mean(ratios)
    squares = math.fsum((x - center) ** 2 for x in ratios)
    plain, widened = (_Moments(len(ratios), center, squares, f) for f in (1.0, (1 + r) / (1 - r)))
    refuted = state.floor + MARGIN
    null = _log(refuted, state.direction)
    found = Decision(
        outcome=None,
        n=len(ratios),
        change=math.expm1(-center if state.direction == "higher" else center),
        worse=_relative(center, state.direction),
        median_worse=_relative(stats.median(ratios), state.direction),
        floor=state.floor,
        refuted=refuted,
        e_worse=_exp(widened.log_e(0.0)) if center > 0 else 0.0,
        e_not_worse=_exp(widened.log_e(null)) if center < null else 0.0,
        e_plain=_exp(plain.log_e(0.0)) if center > 0 else 0.0,
        autocorrelation=r,
        smallest_visible=_smallest_visible(widened, state),
    )
    return replace(found, outcome=_outcome(found, state))


def _outcome(found: Decision, state: SideBySide) -> Outcome | None:
    if found.n < MIN_PAIRS:
        return None
    if found.e_worse >= state.evidence and min(found.worse, found.median_worse) > state.floor:
        return Outcome.FAIL
    if found.e_not_worse >= E_PASS:
        return Outcome.PASS
    return Outcome.UNDECIDED if found.n >= state.max_pairs else None


def _autocorrelation(ratios: tuple[float, ...]) -> float:
    """Lag-1, with its bias of 1/n in short series (Kendall 1954); a negative one counts as 0."""
    # Equal ratios, but for their rounding.
    if len(ratios) < 3 or max(ratios) - min(ratios) < 1e-12:  # noqa: PLR2004
        return 0.0
    return min(_MAX_AUTOCORRELATION, max(0.0, stats.lag1_autocorrelation(ratios) + 1 / len(ratios)))


def _smallest_visible(moments: _Moments, state: SideBySide) -> float:
    """The mean worsening at which E reaches what a FAIL needs with this spread, at least the floor.

    1 or inf where none does.
    """
    n = moments.n
    q = (state.evidence * math.sqrt(n + 1)) ** (2 / n)
    c = (n + 1) * (1 - 1 / q)
    if c >= n:
        return _relative(math.inf, state.direction)
    mean = math.sqrt(c * moments.squares * moments.inflation / (1 - c / n)) / n
    return max(state.floor, _relative(mean, state.direction))


def _log(worse: float, direction: Direction) -> float:
    return -math.log1p(-worse) if direction == "higher" else math.log1p(worse)


def _relative(log: float, direction: Direction) -> float:
    return -math.expm1(-log) if direction == "higher" else _exp(log) - 1


def _exp(x: float) -> float:
    # The largest exponent of a double is 709.
    return math.exp(x) if x < 700 else math.inf  # noqa: PLR2004
