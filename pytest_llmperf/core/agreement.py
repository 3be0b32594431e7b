"""Agreement of a candidate with its reference: what a worker reports per prompt, the quantities, and the rules. Pure."""

from __future__ import annotations

from msgspec import Struct


class TopToken(Struct, frozen=True, array_like=True):
    """One entry of a top-5 list."""

    token_id: int
    text: str
    logit: float


class WorstPosition(Struct, frozen=True, kw_only=True):
    """The position of a prompt where candidate and reference disagree most (largest KL)."""

    position: int
    reference_top5: tuple[TopToken, ...]
    candidate_top5: tuple[TopToken, ...]
    kl: float


class PromptComparison(Struct, frozen=True, kw_only=True):
    """One prompt. Sequences run over the positions of the reference's own greedy continuation, teacher-forced.

    `kl` in nats, KL(reference || candidate); log-probabilities are of the reference's token. `signal` and `noise` are
    sums over positions and vocabulary of reference logits squared (mean removed per position) and of the squared error
    of the candidate's (mean removed), for SQNR. `first_divergence` compares free-running greedy tokens: the first
    position that differs, None when all `n_free` do agree. The two ranks say where, at that position, the
    candidate's token stands in the reference's order and the reference's in the candidate's (0 is the argmax).
    """

    index: int
    prompt: str
    n_prompt_tokens: int
    top1: tuple[bool, ...]
    top5: tuple[bool, ...]
    kl: tuple[float, ...]
    reference_logprob: tuple[float, ...]
    candidate_logprob: tuple[float, ...]
    signal: float
    noise: float
    max_abs_logit_error: float
    n_free: int
    first_divergence: int | None
    candidate_rank_in_reference: int | None = None
    reference_rank_in_candidate: int | None = None
    reference_text: str = ""
    candidate_text: str = ""
    worst: WorstPosition | None = None
