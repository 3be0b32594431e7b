"""One prompt's reference logits against the candidate's: the numbers of `PromptComparison`.

Tensors in, plain values out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_llmperf.core.agreement.comparison import TopToken, WorstPosition

TOP = 5


@dataclass(frozen=True)
class Scored:
    """Teacher-forced comparison of one prompt; see PromptComparison for each field."""

    top1: tuple[bool, ...]
    top5: tuple[bool, ...]
    kl: tuple[float, ...]
    reference_logprob: tuple[float, ...]
    candidate_logprob: tuple[float, ...]
    signal: float
    noise: float
    max_abs_logit_error: float
    candidate_signal: float
    reference_end_logprob: tuple[float, ...]
    candidate_end_logprob: tuple[float, ...]


def score(
    reference: Tensor,
    candidate: Tensor,
    tokens: Tensor,
    dtypes: tuple[torch.dtype, torch.dtype],
    ends: Sequence[int] = (),
) -> Scored:
    """Compare [positions, vocab] float32 logits at the reference's `tokens` [positions].

    `dtypes` are those the logits were computed in, `ends` the ids that end a sequence.
    """
    ref, cand = reference.double(), candidate.double()
    ref_logp, cand_logp = ref.log_softmax(-1), cand.log_softmax(-1)
    error = cand - ref
    return Scored(
        top1=tuple(same_top(reference, candidate, dtypes).tolist()),
        top5=tuple(_in_top(candidate, tokens).tolist()),
        kl=tuple(_kl(ref_logp, cand_logp).tolist()),
        reference_logprob=tuple(_at(ref_logp, tokens).tolist()),
        candidate_logprob=tuple(_at(cand_logp, tokens).tolist()),
        signal=_energy(ref),
        noise=_energy(error),
        max_abs_logit_error=float(error.abs().max()),
        candidate_signal=_energy(cand),
        reference_end_logprob=_of_any(ref_logp, ends),
        candidate_end_logprob=_of_any(cand_logp, ends),
    )


def divergence_of(truth: Tensor, other: Tensor) -> tuple[float, ...]:
    """Return KL(truth || other) of [positions, vocab] logits, in nats, position by position."""
    logps = truth.double().log_softmax(-1), other.double().log_softmax(-1)
    return tuple(_kl(*logps).tolist())


def _of_any(logp: Tensor, ids: Sequence[int]) -> tuple[float, ...]:
    """Return the log-probability of any of `ids` at each position of [positions, vocab]."""
    if not ids:
        return ()
    return tuple(logp[:, list(ids)].logsumexp(-1).tolist())


def _kl(ref_logp: Tensor, cand_logp: Tensor) -> Tensor:
    """Return [positions] KL(reference || candidate) in nats, from log-probabilities."""
    return (ref_logp.exp() * (ref_logp - cand_logp)).sum(-1).clamp(min=0.0)


def _in_top(candidate: Tensor, tokens: Tensor) -> Tensor:
    """Return [positions] whether the token is among the candidate's `TOP` likeliest."""
    top_ids = candidate.topk(min(TOP, candidate.shape[-1])).indices
    return (top_ids == tokens[:, None]).any(-1)


def same_top(
    reference: Tensor, candidate: Tensor, dtypes: tuple[torch.dtype, torch.dtype]
) -> Tensor:
    """Return [positions] whether both put the same token first.

    Also where one puts the other's first within one ulp of its own.
    """
    ref_top, cand_top = reference.argmax(-1), candidate.argmax(-1)
    tied_in_reference = _within_one_ulp(reference, cand_top, dtypes[0])
    tied_in_candidate = _within_one_ulp(candidate, ref_top, dtypes[1])
    return (ref_top == cand_top) | tied_in_reference | tied_in_candidate


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the distance from each value to the next one of `dtype` away from zero.

    Holds for normal numbers.
    """
    exponent = values.abs().double().clamp(min=torch.finfo(dtype).tiny).log2().floor()
    return torch.exp2(exponent) * torch.finfo(dtype).eps


def rank_of(logits: Tensor, token: int) -> int:
    """Return how many tokens stand above `token` in a [vocab] row; 0 is the argmax."""
    return int((logits > logits[token]).sum())


def worst_position(
    scored: Scored, reference: Tensor, candidate: Tensor, text_of: Callable[[int], str]
) -> WorstPosition:
    """Return the position of largest KL with both top fives."""
    position = max(range(len(scored.kl)), key=scored.kl.__getitem__)
    return WorstPosition(
        position=position,
        reference_top5=_top(reference[position], text_of),
        candidate_top5=_top(candidate[position], text_of),
        kl=scored.kl[position],
    )


def _top(row: Tensor, text_of: Callable[[int], str]) -> tuple[TopToken, ...]:
    values, ids = row.topk(min(TOP, row.shape[-1]))
    pairs = zip(values.tolist(), ids.tolist(), strict=True)
    return tuple(TopToken(token, text_of(token), logit) for logit, token in pairs)


def _within_one_ulp(logits: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    largest = logits.max(-1).values
    return largest.double() - _at(logits, tokens).double() <= ulp(largest, dtype)


def _at(rows: Tensor, tokens: Tensor) -> Tensor:
    return rows.gather(-1, tokens[:, None])[:, 0]


def _energy(rows: Tensor) -> float:
    """Return the summed squares of [positions, vocab] logits around each row's mean."""
    return float((rows - rows.mean(-1, keepdim=True)).square().sum())
