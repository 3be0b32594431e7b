"""How large a drop of accuracy a number of items shows, computed exactly. Pure.

An item that one side alone answers correctly is as likely lost as won where the two are equal
(McNemar 1947). Where the reference is a stored number, the candidate's count is held against a
binomial of that rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from pytest_llmperf.core.verdicts.distributions import (
    binomial_cdf,
    binomial_pmf,
    binomial_quantile,
)

MAX_ITEMS = 100_000

_MAX_TERMS = 200
_DEVIATIONS = 6
_PRECISION = 1e-5  # of a drop: a tenth of an item in 10,000


class PairedItems(NamedTuple):
    """Both sides answer the same items, and `spread` of them are answered by one side alone."""

    spread: float
    alpha: float

    @property
    def largest_drop(self) -> float:
        """The drop of a candidate that loses every item which one side alone answers."""
        return self.spread

    @property
    def largest_drop_text(self) -> str:
        """What bounds the drop, for a message."""
        return f"spread of {self.spread:g}"

    def threshold(self, n: int) -> float:
        """Return the observed drop from which on the candidate fails."""
        m = round(n * self.spread)
        return (2 * least_failing_lost(m, self.alpha) - m) / n

    def power(self, n: int, drop: float) -> float:
        """Return the chance that a candidate fails which lost `drop` of the items net.

        It is summed over the number m of items that one side alone answers; where there are many,
        over every few of them, for neighbours have almost the same power.
        """
        lost_share = min(1.0, (1 + drop / self.spread) / 2)
        counts = self._likely_counts(n)
        power, weights = 0.0, 0.0
        most_won = binomial_quantile(counts.start, 0.5, self.alpha) - 1
        for m in counts:
            most_won = most_failing_won(m, self.alpha, most_won + counts.step // 2)
            weight = binomial_pmf(m, n, self.spread)
            weights += weight
            power += weight * (1 - binomial_cdf(m - most_won - 1, m, lost_share))
        return power / weights

    def _likely_counts(self, n: int) -> range:
        """Return the numbers of items that one side alone may answer, at most some 200 of them."""
        mean = n * self.spread
        reach = _DEVIATIONS * math.sqrt(mean * (1 - self.spread))
        first, last = max(0, math.floor(mean - reach)), min(n, math.ceil(mean + reach))
        step = max(1, (last - first) // _MAX_TERMS)
        return range(first, last + 1, step)


class StoredRate(NamedTuple):
    """The reference's accuracy is a number, taken as exact."""

    rate: float
    alpha: float

    @property
    def largest_drop(self) -> float:
        """The drop of a candidate that answers nothing correctly."""
        return self.rate

    @property
    def largest_drop_text(self) -> str:
        """What bounds the drop, for a message."""
        return f"reference accuracy of {self.rate:g}"

    def most_failing(self, n: int) -> int:
        """Return the most correct answers of n that fail the candidate; -1 where none do."""
        return binomial_quantile(n, self.rate, self.alpha) - 1

    def threshold(self, n: int) -> float:
        """Return the observed drop from which on the candidate fails."""
        return self.rate - self.most_failing(n) / n

    def power(self, n: int, drop: float) -> float:
        """Return the chance that a candidate fails which lost `drop` of the items."""
        return binomial_cdf(self.most_failing(n), n, max(0.0, self.rate - drop))


def least_failing_lost(m: int, alpha: float) -> int:
    """Return how many lost items of m, which one side alone answers, are no chance.

    Above m where none are enough.
    """
    return m + 1 - binomial_quantile(m, 0.5, alpha)


def most_failing_won(m: int, alpha: float, guess: int) -> int:
    """Return how many won items of m, which one side alone answers, are too few at most.

    -1 where even none are too many. The search starts at `guess`.
    """
    most = guess
    while most >= 0 and binomial_cdf(most, m, 0.5) > alpha:
        most -= 1
    while binomial_cdf(most + 1, m, 0.5) <= alpha:
        most += 1
    return most


def smallest_drop(power: Callable[[float], float], largest: float, beta: float) -> float | None:
    """Return the smallest drop that is found with a chance of 1 - beta.

    None where not even the largest is.
    """
    if power(largest) < 1 - beta:
        return None
    low, high = 0.0, largest
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= 1 - beta else (middle, high)
    return high


def needed_items(power: Callable[[int], float], beta: float, n: int) -> int | None:
    """Return a number of items above n that has the power; None above MAX_ITEMS.

    By bisection: the power is not quite monotone in n, since counts are whole.
    """
    low, high = n, 2 * n
    while power(high) < 1 - beta:
        low, high = high, 2 * high
        if high > MAX_ITEMS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= 1 - beta else (middle, high)
    return high
