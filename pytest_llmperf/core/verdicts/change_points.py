"""Rule C: changes of level and slow drift over a history of session values.

Pure; it informs, and never fails a test by itself.

A window of 50 runs is split where the energy statistic of E-divisive means is largest (Matteson and
James 2014), and each side again. Permutations cannot reach p = 1e-5 at this price, so a split is
tested with Student's t on the logs, its variance widened for the autocorrelation of the runs about
their levels (as Hunter does, without that widening: Fleming et al. 2023). What is left must differ
by 3 % in the medians of its two sides, on segments of at least four runs, so that one wild run is
no change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from msgspec import Struct

from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.distributions import t_cdf
from pytest_llmperf.errors import UsageError

WINDOW = 50
P_CHANGE = 1e-5
MIN_SEGMENT = 4
FLOOR = 0.03
ANCHOR_RUNS = 30
# A bump inside of a window hides in its first split: it is judged between its neighbours instead.
_P_CANDIDATE = 1e-3
_T_NEVER = 3.2  # below this no t is significant at _P_CANDIDATE, whatever its degrees of freedom

_WILD = 5 * 1.4826  # times the median absolute deviation: five standard deviations of a normal


class ChangePoint(Struct, frozen=True, kw_only=True):
    """A change of level.

    `index` is the first run of the new one; `before` and `after` are the medians of both sides.

    `change` is relative (-0.05 is 5 % less); `p` that of the test between the neighbouring points,
    at most a window each way.
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
    """The changes of level in `values` (one a run, oldest first), in order.

    Fewer than 8 runs have none.

    Raises:
        UsageError: a value is not positive and finite, or the window is shorter than two segments.
    """
    logs = _logs(values, window)
    splits = sorted(
        {at for start, end in _windows(len(logs), window) for at in _splits(logs, start, end)}
    )
    kept = _pruned(logs, _spaced(splits, len(logs)), window, p, floor)
    kept = _pruned(logs, _relocated(logs, kept, window), window, p, floor)
    return tuple(
        _change_point(logs, *around, window) for around in _neighbours(kept, len(logs), window)
    )


def drift(
    values: Sequence[float],
    *,
    anchor: Sequence[float] | None = None,
    p: float = P_CHANGE,
    floor: float = FLOOR,
) -> Drift | None:
    """How far the latest runs are from the anchor, which stays where it is until a change is accepted.

    The anchor is the first 30 runs of `values`, or `anchor` itself; the latest are up to 30 after it. None while either
    has fewer than 8. Raises UsageError for values that are not positive and finite.
    """
    first = _logs(values[:ANCHOR_RUNS] if anchor is None else anchor)
    latest = _logs(values[ANCHOR_RUNS:] if anchor is None else values)[-ANCHOR_RUNS:]
    if min(len(first), len(latest)) < 2 * MIN_SEGMENT:
        return None
    found = _p_value([*first, *latest], 0, len(first), len(first) + len(latest))
    center, now = stats.median(first), stats.median(latest)
    return Drift(
        anchor=math.exp(center),
        latest=math.exp(now),
        n_latest=len(latest),
        p=found,
        significant=found <= p and abs(math.expm1(now - center)) >= floor,
    )


def _logs(values: Sequence[float], window: int = WINDOW) -> list[float]:
    bad = next(((at, x) for at, x in enumerate(values) if not 0 < x < math.inf), None)
    if bad is not None:
        raise UsageError(
            f"run {bad[0]} of the history is {bad[1]!r}: relative changes need positive, finite values."
        )
    if window < 2 * MIN_SEGMENT:
        raise UsageError(
            f"a window of {window} runs is too short: two segments of {MIN_SEGMENT} runs must fit."
        )
    return [math.log(x) for x in values]


def _windows(n: int, window: int) -> Iterator[tuple[int, int]]:
    """Overlapping by half, and one that ends with the latest run."""
    step = window // 2
    yield from ((start, start + window) for start in range(0, n - window + 1, step))
    if n < window or (n - window) % step:
        yield max(0, n - window), n


def _splits(logs: Sequence[float], start: int, end: int) -> Iterator[int]:
    """Where E-divisive splits this stretch, while the split is a candidate."""
    at = _best_split(logs, start, end)
    if at is None or _p_value(logs, start, at, end, apart=True) > _P_CANDIDATE:
        return
    yield from (*_splits(logs, start, at), at, *_splits(logs, at, end))


def _best_split(logs: Sequence[float], start: int, end: int) -> int | None:
    """The split with the largest energy statistic mn/(m+n) (2 E|X-Y| - E|X-X'| - E|Y-Y'|), each side of 4 runs or more."""
    n = end - start
    if n < 2 * MIN_SEGMENT:
        return None
    xs = logs[start:end]
    to_left = [_distance(x, xs[:i]) for i, x in enumerate(xs)]
    within_left = list(accumulate(to_left))
    to_right = [_distance(x, xs[i + 1 :]) for i, x in enumerate(xs)]
    within_right = list(accumulate(reversed(to_right)))
    total = within_left[-1]

    def energy(m: int) -> float:
        left, right, k = within_left[m - 1], within_right[n - m - 1], n - m
        between = total - left - right
        return (
            m
            * k
            / n
            * (2 * between / (m * k) - 2 * left / (m * (m - 1)) - 2 * right / (k * (k - 1)))
        )

    return start + max(range(MIN_SEGMENT, n - MIN_SEGMENT + 1), key=energy)


def _distance(x: float, others: Sequence[float]) -> float:
    return sum([abs(x - other) for other in others])


def _p_value(logs: Sequence[float], start: int, at: int, end: int, *, apart: bool = False) -> float:
    """Two-sided p of Student's t between both sides, with as many samples as their autocorrelation leaves.

    `apart` takes the runs for independent: while changes are still to be found inside of a side, they look like
    autocorrelation and would hide each other.
    """
    left, right = _tamed(logs[start:at], logs[at:end])
    m, k = len(left), len(right)
    difference = sum(right) / k - sum(left) / m
    residuals = [*_residuals(left), *_residuals(right)]
    squares = sum([d * d for d in residuals])
    if squares <= 1e-24 * (m + k):
        return 0.0 if abs(difference) > 1e-9 else 1.0  # noqa: PLR2004
    t = abs(difference) / math.sqrt(squares / (m + k - 2) * (1 / m + 1 / k))
    if t < _T_NEVER:
        return 1.0
    inflation = 1.0 if apart else _inflation(residuals, squares)
    return 2 * t_cdf(-t / math.sqrt(inflation), max(1.0, (m + k - 2) / inflation))


def _tamed(left: Sequence[float], right: Sequence[float]) -> tuple[list[float], list[float]]:
    """Both sides with wild runs drawn in to five (robust) standard deviations from their side's median.

    One run at half speed would otherwise hide a change of 12 % beside it.
    """
    centers = stats.median(left), stats.median(right)
    spread = stats.median(
        [abs(x - center) for xs, center in zip((left, right), centers, strict=True) for x in xs]
    )
    reach = _WILD * spread if spread > 0 else math.inf
    a, b = (
        [min(max(x, center - reach), center + reach) for x in xs]
        for xs, center in zip((left, right), centers, strict=True)
    )
    return a, b


def _residuals(xs: Sequence[float]) -> list[float]:
    center = sum(xs) / len(xs)
    return [x - center for x in xs]


def _inflation(residuals: Sequence[float], squares: float) -> float:
    """(1 + r) / (1 - r) of the lag-1 autocorrelation about both levels, whose bias is about 2/n.

    A negative one counts as 0.
    """
    r = sum([a * b for a, b in pairwise(residuals)]) / squares + 2 / len(residuals)
    r = min(0.9, max(0.0, r))
    return (1 + r) / (1 - r)


def _spaced(splits: Sequence[int], n: int) -> list[int]:
    """Windows that overlap find the same change twice, some runs apart: one of each group stays, to be placed anew."""
    kept: list[int] = []
    for at in splits:
        if at - (kept[-1] if kept else 0) >= MIN_SEGMENT and n - at >= MIN_SEGMENT:
            kept.append(at)
    return kept


def _neighbours(points: Sequence[int], n: int, window: int) -> list[tuple[int, int, int]]:
    """(start, point, end) of each: from the point before to the one after, at most a window each way."""
    edges = [0, *points, n]
    return [
        (max(low, at - window), at, min(high, at + window))
        for low, at, high in zip(edges, edges[1:], edges[2:], strict=False)
    ]


def _pruned(
    logs: Sequence[float], points: Sequence[int], window: int, p: float, floor: float
) -> list[int]:
    """Without the weakest point, again and again, until each that is left is a change by p and by size."""
    kept = list(points)
    while kept:
        found = [
            _weakness(logs, *around, window, p, floor)
            for around in _neighbours(kept, len(logs), window)
        ]
        worst = max(range(len(kept)), key=found.__getitem__)
        if found[worst] <= (False, p):
            break
        del kept[worst]
    return kept


def _weakness(
    logs: Sequence[float], start: int, at: int, end: int, window: int, p: float, floor: float
) -> tuple[bool, float]:
    found = _p_of_point(logs, start, at, end, window)
    before, after = _levels(logs, start, at, end, window)
    return found > p or abs(math.expm1(after - before)) < floor, found


def _p_of_point(logs: Sequence[float], start: int, at: int, end: int, window: int) -> float:
    """The better of two tests, with a whole window and with half of one each way (twice the smaller p, for having two)."""
    half = window // 2
    near, far = (max(start, at - half), min(end, at + half)), (start, end)
    return min(1.0, 2 * min(_p_value(logs, low, at, high) for low, high in {near, far}))


def _levels(
    logs: Sequence[float], start: int, at: int, end: int, window: int
) -> tuple[float, float]:
    """Medians of both sides, within half a window of the point: a slow recovery after a drop does not undo it."""
    half = window // 2
    return stats.median(logs[max(start, at - half) : at]), stats.median(
        logs[at : min(end, at + half)]
    )


def _relocated(logs: Sequence[float], points: Sequence[int], window: int) -> list[int]:
    """Each point where the stretch between its neighbours splits best."""
    placed = (
        _best_split(logs, low, high) for low, _, high in _neighbours(points, len(logs), window)
    )
    return _spaced(sorted({at for at in placed if at is not None}), len(logs))


def _change_point(logs: Sequence[float], start: int, at: int, end: int, window: int) -> ChangePoint:
    before, after = _levels(logs, start, at, end, window)
    return ChangePoint(
        index=at,
        before=math.exp(before),
        after=math.exp(after),
        p=_p_of_point(logs, start, at, end, window),
    )
