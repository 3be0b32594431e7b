"""One prompt's comparison as sums, and the statistics of many of them. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.errors import UsageError


class Sums(NamedTuple):
    """One prompt, summed over its positions: what the bootstrap draws."""

    n: int
    top1: int
    top5: int
    kl: float
    logprob_gap: float
    logprob_abs: float
    prefix: float
    signal: float
    noise: float
    candidate_signal: float
    n_reprefill: int
    reprefill_kl: float
    n_end: int
    end_error: float


Statistic = Callable[[Sequence[Sums]], float]


def sums(row: PromptComparison) -> Sums:
    """Add up the positions of a prompt. Raises UsageError for sequences of unlike lengths."""
    _require_equal_lengths(row)
    pairs = zip(row.reference_logprob, row.candidate_logprob, strict=True)
    gaps = [reference - candidate for reference, candidate in pairs]
    return Sums(
        n=len(row.top1),
        top1=sum(row.top1),
        top5=sum(row.top5),
        kl=math.fsum(row.kl),
        logprob_gap=math.fsum(gaps),
        logprob_abs=math.fsum(map(abs, gaps)),
        prefix=_prefix_share(row),
        signal=row.signal,
        noise=row.noise,
        candidate_signal=row.candidate_signal or 0.0,
        n_reprefill=len(row.reprefill_kl),
        reprefill_kl=math.fsum(row.reprefill_kl),
        n_end=len(row.end_errors),
        end_error=math.fsum(row.end_errors),
    )


def _require_equal_lengths(row: PromptComparison) -> None:
    sequences = [row.top1, row.top5, row.reference_logprob, row.candidate_logprob]
    if not row.partial:
        sequences.append(row.kl)
    if len(set(map(len, sequences))) > 1:
        raise UsageError(
            f"prompt {row.index}: its sequences differ in length; "
            "the engine's comparison is broken."
        )


def _prefix_share(row: PromptComparison) -> float:
    """Return the share of the free-running tokens before the first divergence."""
    if row.first_divergence is None:
        return 1.0
    return row.first_divergence / max(1, row.n_free)


def per_token(quantity: Callable[[Sums], float]) -> Statistic:
    """Return the statistic that is the mean of a quantity over the tokens of all rows."""

    def mean(rows: Sequence[Sums]) -> float:
        return math.fsum(map(quantity, rows)) / sum(row.n for row in rows)

    return mean


def sqnr_db(rows: Sequence[Sums]) -> float:
    """Return the power of all signals over that of all errors, dB."""
    signal = math.fsum(row.signal for row in rows)
    noise = math.fsum(row.noise for row in rows)
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def correlation(rows: Sequence[Sums]) -> float:
    """Correlate by the powers of both sides and of their difference.

    2 <r, c> = |r|^2 + |c|^2 - |r - c|^2.
    """
    reference = math.fsum(row.signal for row in rows)
    candidate = math.fsum(row.candidate_signal for row in rows)
    noise = math.fsum(row.noise for row in rows)
    # A side that has the same logit for every token orders nothing.
    if reference <= 0 or candidate <= 0:
        return 0.0
    product = (reference + candidate - noise) / 2
    return max(-1.0, min(1.0, product / math.sqrt(reference * candidate)))
