"""How much sessions differ, and how far the means of some of them do. Pure, on logs.

Sessions that follow each other are often alike. The spread about their mean then shows less than
they differ by, and the mean of a few says less than as many independent ones would. Both are
corrected by the lag-1 autocorrelation of the sessions, as decision 0008 has it: it is taken as it
was estimated, with no test in between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from msgspec import Struct

_MIN_CORRELATED = 8
_LONG = 20
_MAX_AUTOCORRELATION = 0.9
_MAX_AUTOCORRELATION_IF_SHORT = 0.7
NO_SPREAD = 1e-12


class Spread(Struct, frozen=True, kw_only=True):
    """The standard deviation of the logs of sessions about their level.

    `freedom` is the degrees of freedom that it rests on, `autocorrelation` that of neighbours (0 to
    0.9).
    """

    value: float
    freedom: int
    autocorrelation: float = 0.0

    def error(self, n_new: int, n_accepted: int) -> float:
        """The standard error of a difference: the mean of `n_new` sessions, and of `n_accepted`."""
        variance = self.variance_of_mean(n_new) + self.variance_of_mean(n_accepted)
        return self.value * math.sqrt(variance)

    def variance_of_mean(self, n: int) -> float:
        """The variance of the mean of n sessions in a row, as a share of that of one."""
        return _inflation(n, self.autocorrelation) / n


def spread_of(levels: Sequence[Sequence[float]]) -> Spread | None:
    """Pool the spread of levels, each about its own mean; None where none has two sessions.

    A level is the values of its sessions in their order, positive and finite.
    """
    residuals = [_residuals([math.log(value) for value in level]) for level in levels]
    n = sum(map(len, residuals))
    freedom = n - len(residuals)
    if freedom < 1:
        return None
    squares = math.fsum(residual**2 for level in residuals for residual in level)
    r = _autocorrelation(residuals, squares)
    lost = sum(_inflation(len(level), r) for level in residuals)
    kept = freedom if r == 0 else max(1.0, n - lost)
    return Spread(
        value=math.sqrt(squares / kept),
        freedom=max(freedom - freedom // 2, math.floor(freedom * (1 - r * r) / (1 + r * r))),
        autocorrelation=r,
    )


def _residuals(logs: Sequence[float]) -> list[float]:
    center = fmean(logs)
    return [log - center for log in logs]


def _autocorrelation(residuals: Sequence[Sequence[float]], squares: float) -> float:
    """The lag-1 autocorrelation with its bias of 1/n a level in short series (Kendall 1954).

    A negative one counts as 0, as that of few sessions, or of equal ones.
    """
    n = sum(map(len, residuals))
    if n < _MIN_CORRELATED or squares < n * NO_SPREAD**2:
        return 0.0
    products = math.fsum(a * b for level in residuals for a, b in pairwise(level))
    r = products / squares + len(residuals) / n
    most = _MAX_AUTOCORRELATION if n >= _LONG else _MAX_AUTOCORRELATION_IF_SHORT
    return min(most, max(0.0, r))


def _inflation(n: int, r: float) -> float:
    """The variance of the mean of n values of an AR(1) series, over that of independent ones."""
    if r == 0:
        return 1.0
    # 1 + 2 sum over j < n of (1 - j / n) r^j, summed up.
    return (1 + r) / (1 - r) - 2 * r * (1 - r**n) / (n * (1 - r) ** 2)
