"""Whether two stretches of a history differ in level or in slope, where runs are alike. Pure.

Student's t on the logs, its variance widened for the lag-1 autocorrelation of the runs. Residuals
that measure that are taken about lines: about a level, a slow drift would count as autocorrelation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median

from pytest_llmperf.core.verdicts.distributions import t_cdf

_T_NEVER = 3.2
"""Below this no t is significant at a p of .001, whatever its degrees of freedom."""
_WILD = 5 * 1.4826
"""Times the median absolute deviation, this is five standard deviations of a normal."""
_FAR = 3 * 1.4826
"""The same for three, of differences between neighbours, in which changes of level are rare."""
MAX_AUTOCORRELATION = 0.9
_BIAS = 4.0
"""Lag-1 autocorrelations about a line fall short by 2/n, and sides have half of the runs each."""
_NO_CHANGE = 1e-9
_NO_VARIANCE = 1e-24


def p_of_levels(
    before: Sequence[float],
    after: Sequence[float],
    *,
    apart: bool = False,
    autocorrelation: float | None = None,
) -> float:
    """Return the two-sided p of Student's t between both sides.

    Each side counts as many samples as its autocorrelation leaves: that of the whole history where
    it is known, else that of both sides about a line through each. `apart` takes the runs for
    independent: while changes are still to be found inside of a side, they look like
    autocorrelation and would hide each other.
    """
    before, after = _tamed(before, after)
    difference = abs(fmean(after) - fmean(before))
    residuals = [*_about_level(before), *_about_level(after)]
    freedom = len(residuals) - 2
    variance = sum([residual * residual for residual in residuals]) / freedom
    if variance <= _NO_VARIANCE:
        return 0.0 if difference > _NO_CHANGE else 1.0
    t = difference / math.sqrt(variance * (1 / len(before) + 1 / len(after)))
    if t < _T_NEVER:
        return 1.0
    if apart:
        return _two_sided(t, freedom, 0.0)
    if autocorrelation is None:
        autocorrelation = _autocorrelation([*_about_line(before), *_about_line(after)])
    return _two_sided(t, freedom, autocorrelation)


def p_of_slope(first: Sequence[float], latest: Sequence[float], gap: int) -> float:
    """Return the two-sided p of the slope of one line through both, `gap` runs between them."""
    first, latest = _tamed(first, latest)
    logs = [*first, *latest]
    runs = [*range(len(first)), *range(len(first) + gap, len(first) + gap + len(latest))]
    slope, residuals = _line(runs, logs)
    squares = sum([residual * residual for residual in residuals])
    freedom = len(logs) - 2
    variance = squares / freedom / _squares(runs)
    if variance <= _NO_VARIANCE:
        return 0.0 if abs(slope) > _NO_CHANGE else 1.0
    return _two_sided(abs(slope) / math.sqrt(variance), freedom, _autocorrelation(residuals))


def _two_sided(t: float, freedom: int, autocorrelation: float) -> float:
    """Return the p of |t| where neighbouring runs are alike.

    The variance is widened by (1 + r) / (1 - r), and the degrees of freedom are as much fewer. A
    negative r counts as 0.
    """
    r = min(MAX_AUTOCORRELATION, max(0.0, autocorrelation))
    inflation = (1 + r) / (1 - r)
    return 2 * t_cdf(-t / math.sqrt(inflation), max(1.0, freedom / inflation))


def _tamed(before: Sequence[float], after: Sequence[float]) -> tuple[list[float], list[float]]:
    """Draw wild runs in to five (robust) standard deviations from their side's median.

    One run at half speed would otherwise hide a change of 12 % beside it.
    """
    deviations = [*_deviations(before), *_deviations(after)]
    spread = median(deviations)
    reach = _WILD * spread if spread > 0 else math.inf
    return _drawn_in(before, reach), _drawn_in(after, reach)


def _deviations(logs: Sequence[float]) -> list[float]:
    center = median(logs)
    return [abs(log - center) for log in logs]


def _drawn_in(logs: Sequence[float], reach: float) -> list[float]:
    center = median(logs)
    low, high = center - reach, center + reach
    return [min(max(log, low), high) for log in logs]


def _about_level(logs: Sequence[float]) -> list[float]:
    center = fmean(logs)
    return [log - center for log in logs]


def _about_line(logs: Sequence[float]) -> list[float]:
    """Return the residuals of the line through a stretch of runs, by least squares."""
    return _line(range(len(logs)), logs)[1]


def _line(runs: Sequence[int], logs: Sequence[float]) -> tuple[float, list[float]]:
    """Return the slope of a line through the runs, and what it leaves of their logs."""
    middle, center = fmean(runs), fmean(logs)
    products = sum([(run - middle) * log for run, log in zip(runs, logs, strict=True)])
    slope = products / _squares(runs)
    residuals = [log - center - slope * (run - middle) for run, log in zip(runs, logs, strict=True)]
    return slope, residuals


def _squares(runs: Sequence[int]) -> float:
    middle = fmean(runs)
    return sum([(run - middle) ** 2 for run in runs])


def autocorrelation_about_line(logs: Sequence[float]) -> float:
    """Return the lag-1 autocorrelation of a stretch of runs about the line through it."""
    return _autocorrelation(_about_line(logs))


def autocorrelation_of_differences(logs: Sequence[float]) -> float:
    """Return the lag-1 autocorrelation by the mean squares of differences.

    Those of runs two apart are (1 - r^2) / (1 - r) = 1 + r times those of neighbours where noise is
    autoregressive. Levels and slow drift are in neither.
    """
    of_neighbours = _mean_square([later - log for log, later in pairwise(logs)])
    of_next = _mean_square([later - log for log, later in zip(logs, logs[2:], strict=False)])
    return of_next / of_neighbours - 1 if of_neighbours > _NO_VARIANCE else 0.0


def _mean_square(differences: Sequence[float]) -> float:
    """Return the mean square, differences past three (robust) standard deviations drawn in."""
    sizes = [abs(difference) for difference in differences]
    reach = _FAR * median(sizes)
    return fmean([min(size, reach) ** 2 for size in sizes])


def _autocorrelation(residuals: Sequence[float]) -> float:
    """Return the lag-1 autocorrelation of residuals about lines, without its bias."""
    squares = sum([residual * residual for residual in residuals])
    if squares <= _NO_VARIANCE:
        return 0.0
    products = sum([a * b for a, b in pairwise(residuals)])
    return products / squares + _BIAS / len(residuals)
