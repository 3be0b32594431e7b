"""Noise of known shape, on the log scale with a standard deviation of 1 (but for its wild values).

Seeded by the caller.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

Noise = Callable[[int, random.Random], list[float]]


def normal(n: int, draw: random.Random) -> list[float]:
    """Independent and normal."""
    return [draw.gauss(0, 1) for _ in range(n)]


def t3(n: int, draw: random.Random) -> list[float]:
    """Student's t with 3 degrees of freedom: heavy tails."""
    return [draw.gauss(0, 1) / math.sqrt(draw.gammavariate(1.5, 2)) for _ in range(n)]


def skewed(n: int, draw: random.Random) -> list[float]:
    """A log-normal (sigma 0.6) without its mean: skewness 2.3, the long tail on the worse side."""
    sigma = 0.6
    mean, spread = math.exp(sigma**2 / 2), math.exp(sigma**2 / 2) * math.sqrt(math.expm1(sigma**2))
    return [(math.exp(sigma * draw.gauss(0, 1)) - mean) / spread for _ in range(n)]


def wild(n: int, draw: random.Random) -> list[float]:
    """Normal, and 5 % of the values eight times as far out."""
    return [draw.gauss(0, 8 if draw.random() < 0.05 else 1) for _ in range(n)]


def autocorrelated(r: float) -> Noise:
    """First-order autoregressive with a lag-1 autocorrelation of r."""

    def series(n: int, draw: random.Random) -> list[float]:
        values = [draw.gauss(0, 1)]
        step = math.sqrt(1 - r * r)
        while len(values) < n:
            values.append(r * values[-1] + step * draw.gauss(0, 1))
        return values

    return series


def two_modes(n: int, draw: random.Random) -> list[float]:
    """Three of ten values are in a slow mode, the rest in a fast one, and nothing is between."""
    share = 0.3
    distance = 1 / math.sqrt(share * (1 - share))
    return [distance * ((draw.random() < share) - share) for _ in range(n)]


NOISES: dict[str, Noise] = {
    "normal": normal,
    "t3": t3,
    "skewed": skewed,
    "5 % wild": wild,
    "autocorrelated 0.3": autocorrelated(0.3),
    "autocorrelated 0.5": autocorrelated(0.5),
    "autocorrelated 0.7": autocorrelated(0.7),
}
INDEPENDENT = ("normal", "t3", "skewed", "5 % wild")
