"""Two things measured in turn, and what their pairs say. The order inside a pair is drawn, so that drift favours neither."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from pytest_llmperf.core.stats import mean_interval, median_interval


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the result: a quantity, its median with a 99 % interval, the bar, and whether it is met."""

    name: str
    value: float
    low: float | None
    high: float | None
    unit: str
    bar: str
    met: bool
    n: int
    detail: str = ""


def interleave(a: Callable[[], float], b: Callable[[], float], n: int, *, warm_up: int = 1) -> list[tuple[float, float]]:
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


def finding(name: str, values: list[float], *, unit: str, bar: str, met: Callable[[float], bool], detail: str = "") -> Finding:
    """Median of `values` with its interval, held against a bar."""
    low, high = median_interval(values) or mean_interval(values) or (None, None)
    middle = median(values)
    return Finding(name=name, value=middle, low=low, high=high, unit=unit, bar=bar, met=met(middle), n=len(values), detail=detail)
