"""Student's t, the normal, the beta and the binomial, from the incomplete beta function.

Pure; checked against published tables.
"""

from __future__ import annotations

import math
from functools import lru_cache

_TINY = 1e-300
_EPSILON = 1e-15
_MAX_TERMS = 10_000
_BISECTIONS = 60


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), 0 to 1.

    By its continued fraction (Numerical Recipes 6.4).
    """
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    log_scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_scale + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _continued_fraction(a, b, x) / a
    return 1 - front * _continued_fraction(b, a, 1 - x) / b


def _continued_fraction(a: float, b: float, x: float) -> float:
    """Evaluate the fraction by Lentz's method."""
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MAX_TERMS):
        for numerator in _numerators(a, b, x, m):
            d = 1 / _not_zero(1 + numerator * d)
            c = _not_zero(1 + numerator / c)
            value *= d * c
        if abs(d * c - 1) < _EPSILON:
            return value
    raise ArithmeticError(f"the incomplete beta function did not converge for a={a}, b={b}, x={x}")


def _numerators(a: float, b: float, x: float, m: int) -> tuple[float, float]:
    """Return the even and the odd numerator of step m."""
    n = a + 2 * m
    even = m * (b - m) * x / ((n - 1) * n)
    odd = -(a + m) * (a + b + m) * x / (n * (n + 1))
    return even, odd


def _not_zero(x: float) -> float:
    return x if abs(x) > _TINY else _TINY


def normal_cdf(x: float) -> float:
    """Return the share of a standard normal below x."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def t_cdf(t: float, freedom: float) -> float:
    """Return the share of Student's t below t; `freedom` need not be a whole number."""
    tail = 0.5 * incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))
    return tail if t < 0 else 1 - tail


@lru_cache(maxsize=4096)
def t_quantile(p: float, freedom: float) -> float:
    """Return the value below which Student's t lies with probability p (0 < p < 1).

    By bisection.
    """
    if p < 0.5:  # noqa: PLR2004 - the distribution is symmetric
        return -t_quantile(1 - p, freedom)
    high = _above_t_quantile(p, freedom)
    low = high / 2 if high > 1 else 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def _above_t_quantile(p: float, freedom: float) -> float:
    """Return a power of two that is at least the quantile."""
    bound = 1.0
    while t_cdf(bound, freedom) < p:
        bound *= 2
    return bound


@lru_cache(maxsize=4096)
def beta_quantile(p: float, a: float, b: float) -> float:
    """Return the value below which a Beta(a, b) lies with probability p. By bisection."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if incomplete_beta(a, b, middle) < p else (low, middle)
    return (low + high) / 2


def binomial_pmf(k: int, n: int, p: float) -> float:
    """Return the probability of k successes in n trials."""
    if p >= 1:
        return float(k == n)
    if p <= 0:
        return float(k == 0)
    log_ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log_ways + k * math.log(p) + (n - k) * math.log1p(-p))


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Return the probability of at most k successes in n trials."""
    if k < 0:
        return 0.0
    return 1.0 if k >= n else incomplete_beta(n - k, k + 1, 1 - p)


@lru_cache(maxsize=4096)
def binomial_quantile(n: int, p: float, tail: float) -> int:
    """Return the smallest k whose cumulative probability exceeds `tail`.

    P(X <= k - 1) <= tail < P(X <= k).
    """
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if binomial_cdf(middle, n, p) > tail else (middle + 1, high)
    return low
