"""Rule C: changes of level and slow drift over a history of session values.

Pure; it informs, and never fails a test by itself.

A window of 50 runs is split where the energy statistic of E-divisive means is largest (Matteson and
James 2014), and each side again. Permutations cannot reach p = 1e-5 at this price, so a split is
tested with Student's t on the logs (as Hunter does: Fleming et al. 2023), its variance widened for
the autocorrelation of the runs. That is measured about lines, not levels: about a level, a drift
looks like autocorrelation and hides itself. What is left must differ by 3 % in the medians of its
two sides, on segments of at least four runs, so that one wild run is no change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from statistics import median
from typing import NamedTuple

from msgspec import Struct

from pytest_llmperf.core.verdicts.levels import (
    autocorrelation_about_line,
    autocorrelation_of_differences,
    p_of_levels,
    p_of_slope,
)
from pytest_llmperf.errors import UsageError

WINDOW = 50
P_CHANGE = 1e-5
MIN_SEGMENT = 4
FLOOR = 0.03
ANCHOR_RUNS = 30
_P_CANDIDATE = 1e-3
"""A bump inside of a window hides in its first split, so it is judged between its neighbours."""
_BLOCK = WINDOW // 2
_MIN_BLOCKS = 3
"""So many stretches of half a window tell the autocorrelation of a history: see `_of_history`."""


class ChangePoint(Struct, frozen=True, kw_only=True):
    """A change of level.

    `index` is the first run of the new level; `before` and `after` are the medians of both sides.
    `change` is relative (-0.05 is 5 % less). `p` is that of the test between the neighbouring
    points, at most a window each way.
    """

    index: int
    before: float
    after: float
    p: float

    @property
    def change(self) -> float:
        """After / before - 1."""
        return self.after / self.before - 1


class Drift(Struct, frozen=True, kw_only=True):
    """The latest level against the anchor's, however small the steps between them.

    `significant`: p and floor are both met.
    """

    anchor: float
    latest: float
    n_latest: int
    p: float
    significant: bool

    @property
    def change(self) -> float:
        """Latest / anchor - 1."""
        return self.latest / self.anchor - 1


def change_points(
    values: Sequence[float],
    *,
    window: int = WINDOW,
    p: float = P_CHANGE,
    floor: float = FLOOR,
) -> tuple[ChangePoint, ...]:
    """Find the changes of level in `values` (one a run, oldest first), in order.

    Fewer than 8 runs have none.

    Raises:
        UsageError: a value is not positive and finite, or the window is shorter than two segments.
    """
    history = _History.of(_logs(values, window), window)
    logs, n = history.logs, len(values)
    splits = {split for start, end in _windows(n, window) for split in _splits(logs, start, end)}
    candidates = _spaced(sorted(splits), n)
    significant = _pruned(history, candidates, p, floor)
    points = _pruned(history, _relocated(logs, significant, window), p, floor)
    return tuple(_change_point(history, *bounds) for bounds in _neighbours(points, n, window))


def drift(
    values: Sequence[float],
    *,
    anchor: Sequence[float] | None = None,
    p: float = P_CHANGE,
    floor: float = FLOOR,
) -> Drift | None:
    """Tell how far the latest runs are from the anchor, which moves when a change is accepted.

    The anchor is the first 30 runs of `values`, or `anchor` itself; the latest are up to 30 after
    it. They are told apart by their levels, or by the slope of one line through both, whichever is
    clearer. None while either has fewer than 8. Raises UsageError for values that are not positive
    and finite.
    """
    if anchor is None:
        anchor, values = values[:ANCHOR_RUNS], values[ANCHOR_RUNS:]
    first, since = _logs(anchor), _logs(values)
    latest = since[-ANCHOR_RUNS:]
    if min(len(first), len(latest)) < 2 * MIN_SEGMENT:
        return None
    gap = len(since) - len(latest)
    p_of_difference = min(1.0, 2 * min(p_of_levels(first, latest), p_of_slope(first, latest, gap)))
    first_level, latest_level = median(first), median(latest)
    large = abs(math.expm1(latest_level - first_level)) >= floor
    return Drift(
        anchor=math.exp(first_level),
        latest=math.exp(latest_level),
        n_latest=len(latest),
        p=p_of_difference,
        significant=p_of_difference <= p and large,
    )


def _logs(values: Sequence[float], window: int = WINDOW) -> list[float]:
    for run, value in enumerate(values):
        if not 0 < value < math.inf:
            raise UsageError(
                f"run {run} of the history is {value!r}: "
                "relative changes need positive, finite values."
            )
    if window < 2 * MIN_SEGMENT:
        raise UsageError(
            f"a window of {window} runs is too short: two segments of {MIN_SEGMENT} runs must fit."
        )
    return [math.log(value) for value in values]


class _History(NamedTuple):
    """The logs of a history, its window, and the autocorrelation of its runs.

    That is None for a history that is too short to tell it.
    """

    logs: Sequence[float]
    window: int
    autocorrelation: float | None

    @classmethod
    def of(cls, logs: Sequence[float], window: int) -> _History:
        """Measure the autocorrelation of a history by two estimates, which err differently.

        One is taken about lines through stretches of half a window, and the median of them counts:
        a change inside of one stretch spoils that one. The other is taken from differences, which a
        change spoils once; it is less precise.
        """
        stretches = [
            logs[start : start + _BLOCK] for start in range(0, len(logs) - _BLOCK + 1, _BLOCK)
        ]
        if len(stretches) < _MIN_BLOCKS:
            return cls(logs, window, None)
        about_lines = median(map(autocorrelation_about_line, stretches))
        return cls(logs, window, (about_lines + autocorrelation_of_differences(logs)) / 2)


def _windows(n: int, window: int) -> Iterator[tuple[int, int]]:
    """Yield windows that overlap by half, and one that ends with the latest run."""
    step = window // 2
    yield from ((start, start + window) for start in range(0, n - window + 1, step))
    if n < window or (n - window) % step:
        yield max(0, n - window), n


def _splits(logs: Sequence[float], start: int, end: int) -> Iterator[int]:
    """Yield where E-divisive splits this stretch, while the split is a candidate."""
    split = _best_split(logs, start, end)
    if split is None:
        return
    if p_of_levels(logs[start:split], logs[split:end], apart=True) > _P_CANDIDATE:
        return
    yield from (*_splits(logs, start, split), split, *_splits(logs, split, end))


def _best_split(logs: Sequence[float], start: int, end: int) -> int | None:
    """Return the split with the largest energy statistic, each side of 4 runs or more.

    It is mk / (m + k) (2 E|X - Y| - E|X - X'| - E|Y - Y'|) of m runs before and k after.
    """
    n = end - start
    if n < 2 * MIN_SEGMENT:
        return None
    distances = _Distances.within(logs[start:end])
    return start + max(range(MIN_SEGMENT, n - MIN_SEGMENT + 1), key=distances.energy)


class _Distances(NamedTuple):
    """Sums of distances between runs: `before[i]` of the first i + 1, `after[i]` of the last."""

    before: list[float]
    after: list[float]

    @classmethod
    def within(cls, logs: Sequence[float]) -> _Distances:
        """Sum the distances of one stretch."""
        to_earlier = [_distance(log, logs[:run]) for run, log in enumerate(logs)]
        to_later = [_distance(log, logs[run + 1 :]) for run, log in enumerate(logs)]
        return cls(list(accumulate(to_earlier)), list(accumulate(reversed(to_later))))

    def energy(self, m: int) -> float:
        """Return the energy statistic of the split after `m` runs."""
        n = len(self.before)
        k = n - m
        before, after = self.before[m - 1], self.after[k - 1]
        between = self.before[-1] - before - after
        means = 2 * between / (m * k) - 2 * before / (m * (m - 1)) - 2 * after / (k * (k - 1))
        return m * k / n * means


def _distance(log: float, others: Sequence[float]) -> float:
    return sum([abs(log - other) for other in others])


def _spaced(splits: Sequence[int], n: int) -> list[int]:
    """Keep one of each group of splits: windows that overlap find a change twice, some runs apart.

    The one that stays is placed anew later.
    """
    points: list[int] = []
    for split in splits:
        previous = points[-1] if points else 0
        if min(split - previous, n - split) >= MIN_SEGMENT:
            points.append(split)
    return points


def _neighbours(points: Sequence[int], n: int, window: int) -> list[tuple[int, int, int]]:
    """Return (start, point, end) of each point.

    They reach from the point before to the one after, at most a window each way.
    """
    edges = [0, *points, n]
    return [
        (max(start, point - window), point, min(end, point + window))
        for start, point, end in zip(edges, edges[1:], edges[2:], strict=False)
    ]


def _pruned(history: _History, points: Sequence[int], p: float, floor: float) -> list[int]:
    """Drop the weakest point, again and again, until each is a change by p and by size."""
    remaining = list(points)
    while remaining:
        weaknesses = [
            _weakness(history, *bounds, p, floor)
            for bounds in _neighbours(remaining, len(history.logs), history.window)
        ]
        weakest = max(range(len(remaining)), key=weaknesses.__getitem__)
        if weaknesses[weakest] <= (False, p):
            break
        del remaining[weakest]
    return remaining


def _weakness(
    history: _History, start: int, point: int, end: int, p: float, floor: float
) -> tuple[bool, float]:
    """Return whether a point is no change by p or by size, and its p."""
    p_of_point = _p_of_point(history, start, point, end)
    before, after = _levels(history.logs, start, point, end, history.window)
    small = abs(math.expm1(after - before)) < floor
    return p_of_point > p or small, p_of_point


def _p_of_point(history: _History, start: int, point: int, end: int) -> float:
    """Return the better of two tests, with a whole window and with half of one each way.

    It is twice the smaller p, for having two.
    """
    near_start, near_end = _near(start, point, end, history.window)
    whole = _p_of_split(history, start, point, end)
    if (near_start, near_end) == (start, end):
        return min(1.0, 2 * whole)
    return min(1.0, 2 * min(whole, _p_of_split(history, near_start, point, near_end)))


def _p_of_split(history: _History, start: int, point: int, end: int) -> float:
    before, after = history.logs[start:point], history.logs[point:end]
    return p_of_levels(before, after, autocorrelation=history.autocorrelation)


def _levels(
    logs: Sequence[float], start: int, point: int, end: int, window: int
) -> tuple[float, float]:
    """Return the medians of both sides, within half a window of the point.

    A slow recovery after a drop does not undo the drop.
    """
    near_start, near_end = _near(start, point, end, window)
    return median(logs[near_start:point]), median(logs[point:near_end])


def _near(start: int, point: int, end: int, window: int) -> tuple[int, int]:
    """Return the ends of the stretch within half a window of the point."""
    half = window // 2
    return max(start, point - half), min(end, point + half)


def _relocated(logs: Sequence[float], points: Sequence[int], window: int) -> list[int]:
    """Place each point where the stretch between its neighbours splits best."""
    stretches = _neighbours(points, len(logs), window)
    splits = {_best_split(logs, start, end) for start, _, end in stretches}
    return _spaced(sorted(split for split in splits if split is not None), len(logs))


def _change_point(history: _History, start: int, point: int, end: int) -> ChangePoint:
    before, after = _levels(history.logs, start, point, end, history.window)
    return ChangePoint(
        index=point,
        before=math.exp(before),
        after=math.exp(after),
        p=_p_of_point(history, start, point, end),
    )
