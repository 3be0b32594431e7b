"""What differs from process to process, and the intervals that contain it. Pure.

A repetition describes a process; a process describes a program. So the processes are the
independent observations: with two or more, an interval is Student's on one number a process
(one-way random effects on log values; Kalibera and Jones 2013). With one, a spread that is known
from elsewhere stands in, and where nothing is known the interval says so (`Processes.is_unknown`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from statistics import fmean, median
from typing import NamedTuple

from msgspec import Struct

from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.stats import MeanWithError

UNKNOWN = "one process; others may differ by more than this"
"""What a number says whose spread between processes nobody knows."""

NEAR = 0.05
"""A claim whose value lies within this share of its bound needs a spread between processes."""

_DISTRUSTED = 3.0
"""Where a variance is this many times what is known, what is known does not hold."""

_MIN_PROCESSES = 2


class KnownSpread(Struct, frozen=True, kw_only=True):
    """How much processes differ, known from elsewhere.

    `spread` is the standard deviation of their logs, `freedom` its degrees of freedom, `source`
    where it is from: "12 sessions of this measurement".
    """

    spread: float
    freedom: float
    source: str


class Processes(Struct, frozen=True, kw_only=True):
    """The processes that samples are of.

    `sizes` are how many samples each process gave, in order; empty, all are of one, or it makes no
    difference. `known` stands in for the spread between processes where there is one process.
    `unknown` says why there is one alone; empty where processes do not differ (virtual time).
    """

    sizes: tuple[int, ...] = ()
    known: KnownSpread | None = None
    unknown: str = ""

    @property
    def count(self) -> int:
        """How many processes there are."""
        return max(1, len(self.sizes))

    @property
    def are_several(self) -> bool:
        """Whether their spread can be seen in the samples."""
        return self.count >= _MIN_PROCESSES

    def bound(self, n: int) -> bool:
        """Whether n samples of these processes bound an interval: four, or one of each of three."""
        return n >= stats.MIN_PAIRS or self.count > _MIN_PROCESSES

    @property
    def is_unknown(self) -> bool:
        """Whether nothing is known of how much processes differ, although they do."""
        return bool(self.unknown) and self.known is None and not self.are_several

    def merged(self, other: Processes) -> Processes:
        """Return what is known of a quotient whose sides are of other processes each."""
        if self.is_unknown or other.is_unknown:
            unknown = self.unknown if self.is_unknown else other.unknown
            return Processes(unknown=unknown)
        return Processes()


ALIKE = Processes()
"""Processes that do not differ, or of which nothing is said."""


class Components(NamedTuple):
    """Standard deviations of log values: between processes, and of repetitions within one."""

    between: float
    within: float


def split(xs: Sequence[float], sizes: Sequence[int]) -> list[Sequence[float]]:
    """Return the samples of each process. Raises ValueError where the sizes are of others."""
    if sum(sizes) != len(xs):
        raise ValueError(f"{len(xs)} samples are not those of processes of {list(sizes)}")
    edges = (0, *accumulate(sizes))
    return [xs[start:end] for start, end in pairwise(edges)]


def components(xs: Sequence[float], sizes: Sequence[int]) -> Components | None:
    """Return both spreads of positive values, by analysis of variance with unequal sizes.

    None below two processes, or where no process has two samples.
    """
    if len(sizes) < _MIN_PROCESSES or len(xs) <= len(sizes) or min(xs) <= 0:
        return None
    groups = split([math.log(x) for x in xs], sizes)
    n, k = len(xs), len(groups)
    within = _within_variance(groups)
    center = fmean([x for group in groups for x in group])
    squares = math.fsum(len(group) * (fmean(group) - center) ** 2 for group in groups)
    typical_size = (n - sum(size * size for size in sizes) / n) / (k - 1)
    between = max(0.0, (squares / (k - 1) - within) / typical_size)
    return Components(math.sqrt(between), math.sqrt(within))


def apart(xs: Sequence[float], sizes: Sequence[int]) -> float | None:
    """Return by which share the highest process exceeds the lowest, by their medians.

    None for one process.
    """
    if len(sizes) < _MIN_PROCESSES:
        return None
    levels = [median(group) for group in split(xs, sizes)]
    return max(levels) / min(levels) - 1 if min(levels) > 0 else None


def center_interval(
    xs: Sequence[float], processes: Processes = ALIKE, confidence: float = stats.CONFIDENCE
) -> stats.Interval:
    """Return an interval of the median of a program's positive values.

    With several processes it holds Student's intervals of the processes' medians and of their
    means (on logs): the first is the one for skewed values, the second for two modes. It is
    widened to hold the median of all samples, which is the value that is shown.
    """
    if not processes.are_several:
        interval = stats.center_interval(xs, confidence)
        return _widened(median(xs), interval, processes, confidence)
    middle = median(xs)
    if not processes.bound(len(xs)) or min(xs) <= 0:
        return stats.center_interval(xs, confidence)
    if min(xs) == max(xs):
        return middle, middle
    logs = [math.log(x) for x in xs]
    estimates = [_over_processes(logs, processes, level) for level in (median, fmean)]
    ends = [estimate.interval(confidence) for estimate in estimates]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return min(middle, stats.exp_or_inf(low)), max(middle, stats.exp_or_inf(high))


def widened(
    value: float,
    interval: stats.Interval,
    xs: Sequence[float],
    processes: Processes,
    confidence: float = stats.CONFIDENCE,
) -> stats.Interval:
    """Return an interval of another statistic of the samples, widened by the processes' spread.

    The statistic is taken to vary from process to process as their medians do (on logs), and the
    two uncertainties are added as squares (MOVER, Donner and Zou 2012).
    """
    if not processes.are_several:
        return _widened(value, interval, processes, confidence)
    if value <= 0 or min(xs) <= 0:
        return interval
    logs = [math.log(x) for x in xs]
    reach = _over_processes(logs, processes, median).half_width(confidence)
    return _moved(value, interval, reach)


def log_ratio_interval(
    a: Sequence[float],
    b: Sequence[float],
    processes: tuple[Processes, Processes] = (ALIKE, ALIKE),
    *,
    paired: bool,
    confidence: float = stats.CONFIDENCE,
) -> stats.LogRatio:
    """Return the interval of log(a / b) of two programs.

    Paired, the observations are the blocks: one process on each side. Else the sides' means are
    subtracted, each with what its processes differ by (Welch). Raises as
    `stats.log_ratio_interval`.
    """
    stats.require_positive_sides(a, b)
    log_a, log_b = [math.log(x) for x in a], [math.log(x) for x in b]
    if not paired:
        mean_a, mean_b = (
            _over_processes(logs, side, fmean)
            for logs, side in zip((log_a, log_b), processes, strict=True)
        )
        return stats.log_ratio(stats.welch(mean_a, mean_b), min(len(a), len(b)), confidence)
    differences = [x - y for x, y in zip(log_a, log_b, strict=True)]
    pairs = of_both(*processes)
    estimate = _over_processes(differences, pairs, fmean)
    n = len(differences)
    if pairs.bound(n):
        return stats.LogRatio(estimate.value, *estimate.interval(confidence), n)
    return stats.log_ratio(estimate, n, confidence)


def of_both(a: Processes, b: Processes) -> Processes:
    """Return the processes of the ratios of pairs: each block has one of both sides."""
    if a.known is None or b.known is None:
        return Processes(sizes=a.sizes, unknown=a.unknown or b.unknown)
    spread = math.hypot(a.known.spread, b.known.spread)
    freedom = min(a.known.freedom, b.known.freedom)
    known = KnownSpread(spread=spread, freedom=freedom, source=a.known.source)
    return Processes(sizes=a.sizes, known=known)


def _over_processes(
    logs: Sequence[float], processes: Processes, level: Callable[[Sequence[float]], float]
) -> MeanWithError:
    """Return the mean of the processes' levels, with what processes differ by in its error."""
    if not processes.are_several:
        return _with_known(stats.mean_with_error(logs), processes.known)
    groups = split(logs, processes.sizes)
    levels = [level(group) for group in groups]
    spread = _of_levels(levels, groups, processes.known)
    # Levels that agree by chance leave what repetitions vary by.
    return max(spread, _of_repetitions(fmean(levels), groups), key=_width)


def _width(estimate: MeanWithError) -> float:
    return estimate.half_width(stats.CONFIDENCE)


def _of_levels(
    levels: Sequence[float], groups: Sequence[Sequence[float]], known: KnownSpread | None
) -> MeanWithError:
    """Return the mean of the levels and its error: the larger of what was seen and is known."""
    k, center = len(levels), fmean(levels)
    variance = math.fsum((level - center) ** 2 for level in levels) / (k - 1)
    if known is None:
        return MeanWithError(center, math.sqrt(variance / k), k - 1)
    within = fmean([_within_variance(groups) / len(group) for group in groups])
    expected = known.spread**2 + within
    if variance > _DISTRUSTED * expected:
        return MeanWithError(center, math.sqrt(variance / k), k - 1)
    error = math.sqrt(max(variance, expected) / k)
    return MeanWithError(center, error, known.freedom + k - 1)


def _of_repetitions(center: float, groups: Sequence[Sequence[float]]) -> MeanWithError:
    """Return the error that repetitions alone leave: the processes are taken to be one."""
    n, k = sum(map(len, groups)), len(groups)
    if n <= k:
        return MeanWithError(center, 0.0, 1.0)
    return MeanWithError(center, math.sqrt(_within_variance(groups) / n), n - k)


def _within_variance(groups: Sequence[Sequence[float]]) -> float:
    """Return the pooled variance of samples about the mean of their process; 0 for single ones."""
    n, k = sum(map(len, groups)), len(groups)
    if n <= k:
        return 0.0
    squares = [(x - fmean(group)) ** 2 for group in groups for x in group]
    return math.fsum(squares) / (n - k)


def _with_known(one: MeanWithError, known: KnownSpread | None) -> MeanWithError:
    """Return the mean of one process as the mean of its program."""
    if known is None or not math.isfinite(one.error):
        return one
    spread = MeanWithError(0.0, known.spread, known.freedom)
    total = stats.welch(one, spread)
    return MeanWithError(one.value, total.error, total.freedom)


def _widened(
    value: float, interval: stats.Interval, processes: Processes, confidence: float
) -> stats.Interval:
    """Return the interval of one process as that of its program."""
    known = processes.known
    if known is None or value <= 0:
        return interval
    reach = MeanWithError(0.0, known.spread, known.freedom).half_width(confidence)
    return _moved(value, interval, reach)


def _moved(value: float, interval: stats.Interval, reach: float) -> stats.Interval:
    """Return an interval of a positive value with another uncertainty of its log added."""
    low, high = interval
    if low > 0:
        low = value * math.exp(-math.hypot(math.log(value / low), reach))
    if math.isfinite(high):
        high = value * stats.exp_or_inf(math.hypot(math.log(high / value), reach))
    return low, high
