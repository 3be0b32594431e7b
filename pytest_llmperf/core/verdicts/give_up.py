"""Whether measuring on can still decide anything before the budget ends. Pure.

It is given up where, at the noise seen so far, the interval at the end of the budget would be too
wide by a wide margin: a claim that is merely hard gets its whole budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pytest_llmperf.core.format import format_duration, format_percent
from pytest_llmperf.core.verdicts import stats

USELESS = math.log(3) / 2
"""Half-width, on the log scale, of an interval that decides nothing worth a claim.

Its ends are a factor of 3 apart: it cannot tell a program from one that is twice as fast.
"""

LEAST_NEEDED = 0.1
"""No claim is taken to need more than this: one that barely held may fail by 10 % today."""

MARGIN = 2.0
"""How many times too wide the interval at the end must be forecast: the forecast is rough."""

LEAST_SAMPLES = 10
LEAST_SHARE = 0.15
"""Share of the budget that is used before it is looked at."""

FAR_OFF = 10
"""How many times the samples so far may be needed for a claim before it is called out of reach."""

_MEDIAN_99 = 2.576 * math.sqrt(math.pi / 2)
"""Half the 99 % interval of the median of n normal samples is this times their spread / root n."""

_IQR_OF_NORMAL = 1.349


def needed(margins: Iterable[float]) -> float:
    """Return the widest half of an interval that decides one of these claims, on the log scale.

    `margins` are log(value / bound) of the claims as they came out before; without one it is
    `USELESS`.
    """
    distances = [abs(margin) for margin in margins if math.isfinite(margin)]
    return max(LEAST_NEEDED, *distances) if distances else USELESS


def of_samples(
    values: Sequence[float], *, spent_s: float, budget_s: float, needed: float = USELESS
) -> str:
    """Say in one sentence why no more is sampled; empty where the rest of the budget may decide.

    `needed` is the widest half of an interval, on the log scale, that still decides something.
    """
    if len(values) < LEAST_SAMPLES or not LEAST_SHARE * budget_s <= spent_s < budget_s:
        return ""
    at_end = forecast(values, spent_s=spent_s, budget_s=budget_s)
    if at_end <= MARGIN * needed:
        return ""
    return (
        f"given up after {format_duration(spent_s)} of {format_duration(budget_s)}: at this noise "
        f"the interval at the end of the budget would be ±{format_percent(math.expm1(at_end), 2)} "
        f"at best, and ±{format_percent(math.expm1(needed), 2)} is needed to decide anything"
    )


def forecast(values: Sequence[float], *, spent_s: float, budget_s: float) -> float:
    """Return the half-width that the interval will have at best, on the log scale.

    It is that of independent samples whose middle half spreads as now, so that a wild value counts
    for nothing, and neither neighbours that are alike nor processes that differ make it wider.
    """
    logs = [math.log(value) for value in values]
    spread = (stats.quantile(logs, 0.75) - stats.quantile(logs, 0.25)) / _IQR_OF_NORMAL
    n_at_end = len(values) * budget_s / spent_s
    return _MEDIAN_99 * spread / math.sqrt(n_at_end)


def out_of_reach(n: int, more: int | None, noun: str) -> str:
    """Say of a claim that so many more samples would decide that they are too many.

    Empty where they are not, and where nothing is known of how many. An interval of very few is
    wider than its spread says, so that their number counts as ten.
    """
    if more is None or more <= FAR_OFF * max(n, LEAST_SAMPLES):
        return ""
    times = f"{(n + more) / n:.0f}"
    return f"this machine is too noisy for this claim: {times} times the {noun} would be needed"
