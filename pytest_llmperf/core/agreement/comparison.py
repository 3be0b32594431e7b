"""What one prompt's outputs gave against the reference's, as values."""

from __future__ import annotations

import math

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
    """One prompt, answered by the candidate and by the reference.

    Sequences run over the positions of the reference's own greedy continuation, teacher-forced.
    `kl` is KL(reference || candidate), in nats; log-probabilities are of the reference's token.
    `signal` and `noise` are sums over positions and vocabulary of reference logits squared (mean
    removed per position) and of the squared error of the candidate's (mean removed), for SQNR;
    `candidate_signal` is the first of the candidate's own, None where an engine does not report it.
    `first_divergence` compares free-running greedy tokens: the first position that differs, None
    when all `n_free` do agree. The two ranks say where, at that position, the candidate's token
    stands in the reference's order and the reference's in the candidate's (0 is the argmax).

    `partial` says why an engine gives log-probabilities of some tokens and no logits: `kl` is then
    empty, and what is made of logits is 0 and not to be used.

    `part` is what the prompt stands for in its set. `path` names the loop that the reference's
    tokens were sent through; it is empty where the logits are those of a pass without a cache, and
    `unforced` then says why. `reprefill_kl` is KL(the same model without a cache || through its
    loop), where both were seen. `..._end_logprob` are of the end of the sequence, at each position.
    `rounding_noise` and `rounding_kl` say how far the reference's own logits move when it computes
    in bfloat16: the power of the error over that of the logits, and nats a token.
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
    candidate_signal: float | None = None
    partial: str = ""
    part: str = ""
    path: str = ""
    unforced: str = ""
    reprefill_kl: tuple[float, ...] = ()
    reference_end_logprob: tuple[float, ...] = ()
    candidate_end_logprob: tuple[float, ...] = ()
    rounding_noise: float | None = None
    rounding_kl: float | None = None

    @property
    def positions(self) -> int:
        """How many positions stand before the last token that was compared."""
        return self.n_prompt_tokens + len(self.top1) - 1

    @property
    def end_errors(self) -> tuple[float, ...]:
        """How far the log-probability of the sequence's end is off at each position, nats."""
        pairs = zip(self.reference_end_logprob, self.candidate_end_logprob, strict=True)
        return tuple(abs(reference - candidate) for reference, candidate in pairs)

    @property
    def sqnr_db(self) -> float:
        """Power of the reference's logits over that of the candidate's error, dB."""
        if self.noise <= 0 or self.signal <= 0:
            return math.inf if self.noise <= 0 else -math.inf
        return 10 * math.log10(self.signal / self.noise)

    @property
    def mean_kl(self) -> float:
        """Mean KL(reference || candidate) of the prompt's tokens, nats; 0 without any."""
        return math.fsum(self.kl) / len(self.kl) if self.kl else 0.0

    @property
    def finite(self) -> bool:
        """Whether all its numbers are finite; a model that overflows gives NaN logits."""
        numbers = (
            *self.kl,
            *self.reference_logprob,
            *self.candidate_logprob,
            self.signal,
            self.noise,
            self.max_abs_logit_error,
        )
        return all(map(math.isfinite, numbers))

    def contained(self, k: int, horizon: int) -> bool:
        """Whether each side's token is in the other's top k where the two texts first differ.

        A difference at `horizon` or later does not count.
        """
        if self.first_divergence is None or self.first_divergence >= horizon:
            return True
        ranks = (self.candidate_rank_in_reference, self.reference_rank_in_candidate)
        return all(rank is not None and rank < k for rank in ranks)
