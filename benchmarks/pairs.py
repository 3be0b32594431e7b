"""Two things measured in turn, and what their pairs say.

The order inside a pair is drawn, so that drift favours neither.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from pytest_llmperf.core.verdicts.stats import mean_interval, median_interval


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the result: the median of a quantity with its 99 % interval, and its bar.

    `met` is "yes" when the whole interval is within the bar, "no" when none of it is, and
    "undecided" when this run cannot tell.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    unit: str
    bar: str
    met: str
    n: int
    detail: str = ""


def interleave(
    a: Callable[[], float], b: Callable[[], float], n: int, *, warm_up: int = 1
) -> list[tuple[float, float]]:
    """`n` pairs of measurements, after `warm_up` discarded ones."""
    order = random.Random(0)  # noqa: S311 - not for secrets: the same order in every run
    pairs = []
    for i in range(warm_up + n):
        if order.random() < 0.5:
            first = a()
            pair = (first, b())
        else:
            second = b()
            pair = (a(), second)
        if i >= warm_up:
            pairs.append(pair)
    return pairs


def finding(
    name: str,
    values: list[float],
    *,
    unit: str,
    bar: str,
    within: tuple[float, float],
    detail: str = "",
) -> Finding:
    """Median of `values` with its interval, held against the range that the bar allows."""
    low, high = median_interval(values) or mean_interval(values) or (None, None)
    met = verdict(low, high, within)
    return Finding(
        name=name,
        value=median(values),
        low=low,
        high=high,
        unit=unit,
        bar=bar,
        met=met,
        n=len(values),
        detail=detail,
    )


def verdict(low: float | None, high: float | None, within: tuple[float, float]) -> str:
    """Whether an interval lies in a range: "yes", "no" (wholly outside), or "undecided"."""
    if low is None or high is None:
        return "undecided"
    if within[0] <= low and high <= within[1]:
        return "yes"
    return "no" if high < within[0] or low > within[1] else "undecided"
