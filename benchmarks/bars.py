"""Lines of a result against their bars: shares, rates of rare events, and numbers."""

from __future__ import annotations

import math

from pairs import Finding, verdict

_Z99 = 2.5758


def share(
    name: str, hits: int, runs: int, *, at_most: float | None = None, at_least: float | None = None
) -> Finding:
    """A share in %, with Wilson's interval."""
    low, high = (100 * end for end in wilson(hits, runs))
    within = (at_least or 0.0, 100.0 if at_most is None else at_most)
    bar = (
        f"<= {at_most:g} %"
        if at_most is not None
        else f">= {at_least:g} %"
        if at_least is not None
        else ""
    )
    met = verdict(low, high, within) if bar else ""
    return Finding(
        name=name, value=100 * hits / runs, low=low, high=high, unit="%", bar=bar, met=met, n=runs
    )


def all_of(name: str, hits: int, runs: int) -> Finding:
    """A share of which the bar is all."""
    low, high = (100 * end for end in wilson(hits, runs))
    met = "yes" if hits == runs else "no"
    return Finding(
        name=name,
        value=100 * hits / runs,
        low=low,
        high=high,
        unit="%",
        bar="100 %",
        met=met,
        n=runs,
    )


def per_thousand(
    name: str, points: int, series: int, at_most: float | None, *, at_least: float | None = None
) -> Finding:
    """Return a rate of rare events in 1,000 series with the interval of a Poisson count.

    The interval comes from the count's square root (Anscombe 1948).
    """
    low = max(0.0, math.sqrt(points) - _Z99 / 2) ** 2 / series * 1000
    high = (math.sqrt(points + 0.75) + _Z99 / 2) ** 2 / series * 1000
    within = (at_least or 0.0, math.inf if at_most is None else at_most)
    bar = "" if at_most is None else f"<= {at_most:g}"
    bar = bar or ("" if at_least is None else f">= {at_least:g}")
    return Finding(
        name=name,
        value=1000 * points / series,
        low=low,
        high=high,
        unit="",
        bar=bar,
        met=verdict(low, high, within) if bar else "",
        n=series,
    )


def number(
    name: str, value: float, unit: str, runs: int, *, at_most: float | None = None
) -> Finding:
    """Return a number without an interval of its own."""
    met = "" if at_most is None else "yes" if value <= at_most else "no"
    bar = "" if at_most is None else f"<= {at_most:g}"
    return Finding(name=name, value=value, low=None, high=None, unit=unit, bar=bar, met=met, n=runs)


def wilson(hits: int, runs: int) -> tuple[float, float]:
    """99 % interval of a share (Wilson 1927)."""
    z2, share = _Z99 * _Z99, hits / runs
    center, reach = (
        share + z2 / (2 * runs),
        _Z99 * math.sqrt(share * (1 - share) / runs + z2 / (4 * runs * runs)),
    )
    low = (center - reach) / (1 + z2 / runs) if hits else 0.0
    return max(0.0, low), min(1.0, (center + reach) / (1 + z2 / runs))
