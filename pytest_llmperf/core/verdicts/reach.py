"""How far a value of a session may be from the accepted ones, in logs. Pure.

Logs of value / center are positive where the value is worse, whichever side of the metric that is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.core.verdicts.distributions import t_cdf, t_quantile
from pytest_llmperf.core.verdicts.estimate import Direction
from pytest_llmperf.core.verdicts.spread import NO_SPREAD, Spread

MAX_SESSIONS = 30
MIN_SESSIONS = 8
FRESH_RUNS = 3
"""How many fresh measurements decide a suspicion, pooled."""

QUIET = 0.025
"""The spread up to which fresh runs of one session are taken to differ as sessions do.

Above it, how they differ has to be calibrated: what a day has done to a machine is in all of them.
"""

# Of the limit of p.
_SUSPICION = 20.0
_POWER = 0.8
_BISECTIONS = 10
_NO_CHANGE = 1e-9


def p_of_suspicion(limit: float) -> float:
    """The p that a value alone has to reach to be measured again."""
    return min(0.5, _SUSPICION * limit)


class Reach(Struct, frozen=True, kw_only=True):
    """How far a value of a session, or the mean of fresh runs of one, may be from the center.

    `n_center` sessions made the center. `fresh` is for the mean of `n_fresh` runs in one session.
    """

    spread: Spread
    n_center: int
    calibrated: float | None = None
    n_fresh: int = FRESH_RUNS
    fresh: bool = False
    tells_visible: bool = True
    """Whether the smallest visible change is worked out, which takes nearly all of the time."""

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

    def smallest_visible(self, least: float, limit: float) -> float:
        """The change that would be a suspicion and be confirmed, with a probability of 80 %.

        `least` is what a FAIL has to exceed, and `limit` the p that fresh runs have to reach.
        """
        fresh = replace(self, fresh=True)
        reaches = {
            self: max(least, self.quantile(p_of_suspicion(limit))),
            fresh: max(least, fresh.quantile(limit)),
        }

        def power(log_worse: float) -> float:
            chances = (one.p(needed - log_worse) for one, needed in reaches.items())
            return math.prod(chances)

        low, high = (
            max(needed + one.quantile(1 - share) for one, needed in reaches.items())
            for share in (_POWER, math.sqrt(_POWER))
        )
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if power(middle) < _POWER else (low, middle)
        return high

    def more_sessions(self, log_worse: float, n: int, limit: float) -> int | None:
        """Return how many more sessions like the `n` would let this change reach a p of `limit`.

        At least up to 8, at most up to 30; None where none would.
        """
        for total in range(max(n + 1, MIN_SESSIONS), MAX_SESSIONS + 1):
            error = self.spread.value * math.sqrt(1 + 1 / total)
            if t_quantile(1 - limit, total - 1) * error <= log_worse:
                return total - n
        return MIN_SESSIONS - n if n < MIN_SESSIONS else None

    def p(self, log_worse: float) -> float:
        """The probability that a value without a change is as much worse, or more."""
        return one_sided(log_worse, self.error, self.spread.freedom)


def log_worse_of(values: Sequence[float], center: float, direction: Direction) -> float:
    """Return the mean log of values / center, positive where they are worse."""
    log_ratio = fmean(map(math.log, values)) - math.log(center)
    return -log_ratio if direction == "higher" else log_ratio


def log_limit(floor: float, direction: Direction) -> float:
    """Return how much worse a share is in logs: 3 % less is 0.0305, 3 % more 0.0296."""
    return -math.log1p(-floor) if direction == "higher" else math.log1p(floor)


def log_twice(floor: float, direction: Direction) -> float:
    """Twice the floor, in logs, where the metric is worse: at most twice as a share, too."""
    return 2 * log_limit(floor, direction) if direction == "higher" else math.log1p(2 * floor)


def relative(log: float, direction: Direction) -> float:
    """Return how much worse in logs is as a share."""
    return -math.expm1(-log) if direction == "higher" else math.expm1(min(log, 700.0))


def one_sided(log_worse: float, error: float, freedom: int) -> float:
    """Return the probability that a value without a change is as much worse, or more."""
    # Equal sessions have no spread, but for the rounding of their logs.
    if error < NO_SPREAD:
        return 0.0 if log_worse > _NO_CHANGE else 1.0
    return t_cdf(-log_worse / error, freedom)
