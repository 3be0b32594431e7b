"""Statistics on short, skewed and autocorrelated series of timings.

Pure; sequences of floats in, intervals out.

An interval is (low, high). None means that the sample is too small for any; an infinite end means
that nothing bounds it. Coverage is simulated in the tests: 99 % on independent samples, and at
least 93 % on series with a lag-1 autocorrelation of 0.5.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

from pytest_llmperf.core.verdicts.distributions import binomial_quantile, normal_cdf, t_quantile

CONFIDENCE = 0.99
MIN_PAIRS = 4
_MAX_SAMPLES = 100_000
_LONG_SERIES = 20
_MAX_AUTOCORRELATION = 0.9
_MAX_AUTOCORRELATION_IF_SHORT = 0.7
MAX_EXPONENT = 700  # the largest of a double is 709

Row = TypeVar("Row")
Interval = tuple[float, float]


class LogRatio(NamedTuple):
    """A ratio on the log scale, with its interval.

    `n` is how many pairs it rests on, or how many samples the smaller side has.
    """

    center: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """Half the length of the interval, in log units."""
        return (self.high - self.low) / 2


class MeanWithError(NamedTuple):
    """A mean with its standard error and the degrees of freedom of that error."""

    value: float
    error: float
    freedom: float

    @property
    def variance(self) -> float:
        """The square of the error."""
        return self.error**2

    def half_width(self, confidence: float) -> float:
        """Half the length of Student's interval at this confidence."""
        return t_quantile(1 - (1 - confidence) / 2, self.freedom) * self.error

    def interval(self, confidence: float) -> Interval:
        """Student's interval at this confidence."""
        half = self.half_width(confidence)
        return self.value - half, self.value + half


def quantile(xs: Sequence[float], q: float) -> float:
    """Return the q-quantile, interpolated between order statistics (Hyndman and Fan, type 7).

    Raises ValueError for an empty sequence.
    """
    if not xs:
        raise ValueError("no samples")
    ordered = sorted(xs)
    position = q * (len(ordered) - 1)
    rank = math.floor(position)
    below, above = ordered[rank], ordered[min(rank + 1, len(ordered) - 1)]
    if position == rank or below == above:  # also keeps inf - inf away
        return below
    return below + (position - rank) * (above - below)


def min_samples(q: float) -> int:
    """Return the number of samples below which the q-quantile is refused.

    It is 2 / (1 - q), so that two samples are expected beyond the quantile; 4 for the median.
    """
    return math.ceil(round(2 / (1 - q), 9))


def bounding_samples(q: float, confidence: float = CONFIDENCE) -> int:
    """Return how many independent samples give an interval of the q-quantile both ends.

    At 99 % that is 8 for the median and 104 for p95.
    """
    return math.ceil(math.log((1 - confidence) / 2) / math.log(max(q, 1 - q)))


def samples_for_both_ends(xs: Sequence[float], q: float, confidence: float = CONFIDENCE) -> int:
    """Return how many samples, correlated as these, give the q-quantile's interval both ends."""
    return math.ceil(bounding_samples(q, confidence) * len(xs) / effective_n(xs))


def lag1_autocorrelation(xs: Sequence[float]) -> float:
    """Return the correlation of neighbours, -1 to 1; 0 for a constant series."""
    center = statistics.fmean(xs)
    deviations = [x - center for x in xs]
    total = math.fsum(deviation * deviation for deviation in deviations)
    if total <= 0:
        return 0.0
    return math.fsum(a * b for a, b in pairwise(deviations)) / total


def effective_n(xs: Sequence[float]) -> float:
    """Return how many independent samples the series is worth: n (1 - r) / (1 + r), 2 to n.

    r is the lag-1 autocorrelation plus 1/n, its bias in short series (Kendall 1954); a negative r
    counts as 0. There is no test of significance in between: it would miss r = 0.5 in series below
    20 (coverage 0.90 instead of 0.95).
    """
    n, r = len(xs), _believed_autocorrelation(xs)
    return min(float(n), max(2.0, n * (1 - r) / (1 + r)))


def _believed_autocorrelation(xs: Sequence[float]) -> float:
    """Return the lag-1 autocorrelation, bounded to 0 and 0.9, in short series to 0.7.

    0.7 is the largest seen on a GPU; a wild estimate of a short series would leave no interval.
    """
    n = len(xs)
    if n < 3 or min(xs) == max(xs):  # noqa: PLR2004 - two samples have no neighbours to compare
        return 0.0
    highest = _MAX_AUTOCORRELATION_IF_SHORT if n < _LONG_SERIES else _MAX_AUTOCORRELATION
    return min(highest, max(0.0, lag1_autocorrelation(xs) + 1 / n))


def median_interval(xs: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Return the distribution-free interval of the median, from order statistics.

    None below 8 (effective) samples at 99 %.
    """
    interval = quantile_interval(xs, 0.5, confidence)
    return interval if all(map(math.isfinite, interval)) else None


def quantile_interval(xs: Sequence[float], q: float, confidence: float = CONFIDENCE) -> Interval:
    """Return the distribution-free interval of the q-quantile.

    Its ends are the order statistics whose ranks bound a Binomial(n, q). With an effective n below
    n, the ranks are those of the smaller sample, spread over the larger. An end that no sample
    bounds is infinite: the 95th percentile has an upper end at 99 % from 104 samples on.
    """
    n, worth = len(xs), math.floor(effective_n(xs))
    tail = (1 - confidence) / 2
    low_rank = binomial_quantile(worth, q, tail)
    high_rank = binomial_quantile(worth, q, 1 - tail) + 1
    spread = (n + 1) / (worth + 1)
    ordered = sorted(xs)
    low, high = -math.inf, math.inf
    if low_rank >= 1:
        low = ordered[max(1, math.floor(low_rank * spread)) - 1]
    if high_rank <= worth:
        high = ordered[min(n, math.ceil(high_rank * spread)) - 1]
    return low, high


def mean_interval(xs: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Return Student's interval of the mean, with the effective n; None below 4 samples."""
    if len(xs) < MIN_PAIRS:
        return None
    estimate = mean_with_error(xs)
    half = estimate.half_width(confidence)
    return estimate.value - half, estimate.value + half


def center_interval(xs: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return an interval of the median of positive values.

    It comes from order statistics, or with fewer samples from Student's t on their logs. The second
    is the interval of the geometric mean, widened to hold the sample's median. Below 4 samples it
    is (0, inf).
    """
    interval = median_interval(xs, confidence)
    if interval is not None:
        return interval
    middle = statistics.median(xs)
    if len(xs) < MIN_PAIRS or min(xs) <= 0:
        return (0.0 if min(xs) >= 0 else -math.inf), math.inf
    logs = mean_interval([math.log(x) for x in xs], confidence)
    # Equal samples have their own value, without the rounding of exp(log(x)).
    if logs is None or min(xs) == max(xs):
        return middle, middle
    return min(middle, math.exp(logs[0])), max(middle, exp_or_inf(logs[1]))


def log_ratio_interval(
    a: Sequence[float], b: Sequence[float], *, paired: bool, confidence: float = CONFIDENCE
) -> LogRatio:
    """Return the interval of log(a / b): Student's on the pairs' log ratios, else Welch's.

    By simulation (6 to 40 pairs, noise 2 %, normal, t3, skewed, autocorrelated) the mean of the log
    ratios covers what it claims; intervals of the median have none below 8 effective pairs. Below 4
    samples a side the ends are infinite.

    Raises:
        ValueError: a value is not positive, a side is empty, or paired sides differ in length.
    """
    require_positive_sides(a, b)
    log_a, log_b = [math.log(x) for x in a], [math.log(x) for x in b]
    if paired:
        differences = [x - y for x, y in zip(log_a, log_b, strict=True)]
        return log_ratio(mean_with_error(differences), len(differences), confidence)
    difference = welch(mean_with_error(log_a), mean_with_error(log_b))
    return log_ratio(difference, min(len(a), len(b)), confidence)


def require_positive_sides(a: Sequence[float], b: Sequence[float]) -> None:
    """Raise ValueError where a side is empty, or a value is not positive."""
    if not a or not b or min(*a, *b) <= 0:
        raise ValueError(f"a ratio needs positive samples on both sides, got {len(a)} and {len(b)}")


def log_ratio(estimate: MeanWithError, n: int, confidence: float) -> LogRatio:
    """Return a difference of logs as a ratio; below 4 samples its ends are infinite."""
    if n < MIN_PAIRS:
        return LogRatio(estimate.value, -math.inf, math.inf, n)
    half = estimate.half_width(confidence)
    return LogRatio(estimate.value, estimate.value - half, estimate.value + half, n)


def mean_with_error(xs: Sequence[float]) -> MeanWithError:
    """Return the mean and its error, allowing for autocorrelation (Bartlett 1935).

    The spread of an autocorrelated series underestimates its variance, and the effective n of that
    variance goes with r squared.
    """
    n = len(xs)
    # One sample has no spread; equal samples have none but rounding.
    if n < 2 or min(xs) == max(xs):  # noqa: PLR2004
        return MeanWithError(xs[0], 0.0 if n > 1 else math.inf, 1.0)
    r, worth = _believed_autocorrelation(xs), effective_n(xs)
    freedom = max(1.0, (n - 1) * (1 - r * r) / (1 + r * r))
    return MeanWithError(statistics.fmean(xs), math.sqrt(_variance(xs, worth) / worth), freedom)


def _variance(xs: Sequence[float], worth: float) -> float:
    """Return the variance of a series that is worth so many independent samples."""
    n, center = len(xs), statistics.fmean(xs)
    variance = math.fsum((x - center) ** 2 for x in xs) / (n - 1)
    if worth < n:
        variance *= worth * (n - 1) / (n * (worth - 1))
    return variance


def welch(a: MeanWithError, b: MeanWithError) -> MeanWithError:
    """Subtract two independent means, with degrees of freedom by Welch and Satterthwaite."""
    variance = a.variance + b.variance
    difference, error = a.value - b.value, math.sqrt(variance)
    if error in (0.0, math.inf):
        return MeanWithError(difference, error, 1.0)
    freedom = variance**2 / (a.variance**2 / a.freedom + b.variance**2 / b.freedom)
    return MeanWithError(difference, error, freedom)


def bootstrap_interval(
    rows: Sequence[Row],
    statistic: Callable[[Sequence[Row]], float],
    confidence: float = CONFIDENCE,
    seed: int = 0,
    resamples: int = 1000,
) -> Interval:
    """Return the bootstrap interval of `statistic` over rows drawn with replacement.

    The same seed gives the same interval. Percentiles are expanded for small samples (Hesterberg
    2015: those of Student's t with n - 1 degrees of freedom and the spread's bias undone), since
    the plain ones are too narrow by a sixth at n = 8. One row bounds nothing.
    """
    n = len(rows)
    if n < 2:  # noqa: PLR2004
        return -math.inf, math.inf
    draw = random.Random(seed)  # noqa: S311 - resampling, not secrets
    values = sorted(statistic(draw.choices(rows, k=n)) for _ in range(resamples))
    reach = math.sqrt(n / (n - 1)) * t_quantile(1 - (1 - confidence) / 2, n - 1)
    tail = normal_cdf(-reach)
    value = statistic(rows)
    return min(value, quantile(values, tail)), max(value, quantile(values, 1 - tail))


def samples_needed(
    n: int, half_width: float, distance: float, *, at_least: int = MIN_PAIRS
) -> int | None:
    """Return how many more samples bring an interval's half-width below `distance`.

    The width is taken to shrink with the root of n. None when that is out of reach (no distance, or
    above 100,000 samples). An infinite width asks for `at_least` samples.
    """
    if not math.isfinite(half_width):
        return max(1, at_least - n)
    if distance <= 0:
        return None
    total = n * (half_width / distance) ** 2
    return max(1, math.ceil(total) - n) if total <= _MAX_SAMPLES else None


def smallest_visible_change(half_width: float) -> float:
    """Return the smallest relative change that an interval of this log half-width tells from none.

    0.015 is 1.5 %.
    """
    return math.expm1(half_width) if half_width < MAX_EXPONENT else math.inf


def exp_or_inf(x: float) -> float:
    """Return e to the power of `x`, and infinity where a double has no number for it."""
    return math.exp(x) if x < MAX_EXPONENT else math.inf
