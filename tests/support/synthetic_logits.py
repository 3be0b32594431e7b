"""Prompts of a candidate and its reference, scored from logits that a test makes itself.

No torch: small vocabularies.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from pytest_llmperf.core.agreement.comparison import PromptComparison

POSITIONS, VOCABULARY = 32, 40
Row = list[float]


def compared(index: int, reference: Sequence[Row], candidate: Sequence[Row]) -> PromptComparison:
    """One prompt; the texts are the argmaxes, so that they differ first where those do."""
    tokens, own = (
        [max(range(len(row)), key=row.__getitem__) for row in side]
        for side in (reference, candidate)
    )
    candidate_logp, reference_logp = (
        [_logp(row) for row in candidate],
        [_logp(row) for row in reference],
    )
    at = next((i for i, (r, c) in enumerate(zip(tokens, own, strict=True)) if r != c), None)
    pairs = list(zip(reference, candidate, strict=True))
    return PromptComparison(
        index=index,
        prompt=f"prompt {index}",
        n_prompt_tokens=4,
        top1=tuple(r == c for r, c in zip(tokens, own, strict=True)),
        top5=tuple(_rank(row, token) < 5 for row, token in zip(candidate, tokens, strict=True)),
        kl=tuple(
            max(0.0, sum(math.exp(r) * (r - c) for r, c in zip(*rows, strict=True)))
            for rows in zip(reference_logp, candidate_logp, strict=True)
        ),
        reference_logprob=tuple(
            row[token] for row, token in zip(reference_logp, tokens, strict=True)
        ),
        candidate_logprob=tuple(
            row[token] for row, token in zip(candidate_logp, tokens, strict=True)
        ),
        signal=sum(_power(row) for row in reference),
        noise=sum(_power([c - r for r, c in zip(*rows, strict=True)]) for rows in pairs),
        max_abs_logit_error=max(abs(c - r) for rows in pairs for r, c in zip(*rows, strict=True)),
        n_free=len(tokens),
        first_divergence=at,
        candidate_rank_in_reference=None if at is None else _rank(reference[at], own[at]),
        reference_rank_in_candidate=None if at is None else _rank(candidate[at], tokens[at]),
        candidate_signal=sum(_power(row) for row in candidate),
    )


def prompts(
    change: Callable[[Row, random.Random], Row], n: int = 12, seed: int = 0
) -> tuple[PromptComparison, ...]:
    """`n` prompts whose candidate logits are the reference's after `change`."""
    draw = random.Random(seed)
    rows = [
        [[draw.gauss(0, 3) for _ in range(VOCABULARY)] for _ in range(POSITIONS)] for _ in range(n)
    ]
    return tuple(
        compared(i, row, [change(list(position), draw) for position in row])
        for i, row in enumerate(rows)
    )


def noisy(sqnr_db: float) -> Callable[[Row, random.Random], Row]:
    """Independent normal errors of this signal-to-noise ratio."""
    sigma = 3 / 10 ** (sqnr_db / 20)
    return lambda row, draw: [x + draw.gauss(0, sigma) for x in row]


def scaled(factor: float) -> Callable[[Row, random.Random], Row]:
    """Every logit times `factor`: the same order, another temperature."""
    return lambda row, _draw: [factor * x for x in row]


def _logp(row: Row) -> Row:
    total = math.log(sum(map(math.exp, row)))
    return [x - total for x in row]


def _power(row: Row) -> float:
    mean = sum(row) / len(row)
    return sum((x - mean) ** 2 for x in row)


def _rank(row: Row, token: int) -> int:
    return sum(x > row[token] for x in row)
