"""The interval of a share of tokens that come in prompts: exact, and honest near 1. Pure.

A bootstrap of prompts that are all equal has no width, and says of 0.998 that it is 1. Clopper's
and Pearson's interval has one, but takes tokens for independent. So their number is divided by the
design effect of the prompts (Korn and Graubard 1998).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_llmperf.core.verdicts.distributions import beta_quantile, t_quantile
from pytest_llmperf.core.verdicts.stats import CONFIDENCE, Interval

LEAST_CORRELATION = 0.05
"""What tokens of one prompt have in common at least, whatever few prompts show of it.

With a share of 0.99 and 24 prompts there are failures in a handful: no estimate sees whether they
come together. Simulated (benchmarks/verdict_bars.py): coverage of 98 % up to a correlation of 0.2.
"""


def share_interval(
    counts: Sequence[int], sizes: Sequence[int], confidence: float = CONFIDENCE
) -> Interval:
    """Return the interval of sum(counts) / sum(sizes): `counts` of the `sizes` tokens a prompt.

    It is Clopper's and Pearson's on the effective number of tokens. Where all or none count, it is
    never narrower than the rule of three. One prompt alone bounds nothing.

    Raises:
        ValueError: no prompts, a prompt without tokens, or more counted than there are.
    """
    if not counts or any(
        not 0 <= n <= size or size == 0 for n, size in zip(counts, sizes, strict=True)
    ):
        raise ValueError(f"counts {list(counts)} are no shares of {list(sizes)} tokens")
    if len(counts) == 1:
        return 0.0, 1.0
    n = effective_tokens(counts, sizes, confidence)
    hits = n * sum(counts) / sum(sizes)
    tail = (1 - confidence) / 2
    low = beta_quantile(tail, hits, n - hits + 1) if hits > 0 else 0.0
    high = beta_quantile(1 - tail, hits + 1, n - hits) if hits < n else 1.0
    return low, high


def effective_tokens(
    counts: Sequence[int], sizes: Sequence[int], confidence: float = CONFIDENCE
) -> float:
    """Return how many independent tokens say as much as these do.

    The design effect is the variance of the share over prompts by that of as many independent
    tokens. It is estimated from few prompts, which the ratio of two quantiles of Student's t pays
    for, as Korn and Graubard do.
    """
    n, k = sum(sizes), len(sizes)
    share = sum(counts) / n
    least = _least_design_effect(sizes)
    if share in (0.0, 1.0):
        return n / least
    squares = math.fsum(
        (count - share * size) ** 2 for count, size in zip(counts, sizes, strict=True)
    )
    of_prompts = k / (k - 1) * squares / n**2
    of_tokens = share * (1 - share) / n
    tail = 1 - (1 - confidence) / 2
    few_prompts = (t_quantile(tail, n - 1) / t_quantile(tail, k - 1)) ** 2
    return max(1.0, n / max(least, of_prompts / of_tokens) * few_prompts)


def _least_design_effect(sizes: Sequence[int]) -> float:
    """Return 1 + (m - 1) times the least correlation, of m tokens a prompt (Kish 1965)."""
    tokens_a_prompt = math.fsum(size**2 for size in sizes) / sum(sizes)
    return 1 + (tokens_a_prompt - 1) * LEAST_CORRELATION
