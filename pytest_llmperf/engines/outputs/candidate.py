"""A candidate scored on a reference's own tokens, through the loop that is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.engines.outputs.inputs import first_rows
from pytest_llmperf.engines.outputs.reference import PromptBatch, Reference, batches
from pytest_llmperf.engines.outputs.scorer import Scorer, require_same_vocabulary
from pytest_llmperf.engines.outputs.scoring import (
    divergence_of,
    rank_of,
    score,
    worst_position,
)
from pytest_llmperf.errors import UsageError

LOOKED_AT_TWICE = 8
"""Prompts that are decoded freely and passed without a cache besides; each way costs a prefill."""


def compare_reference(scorer: Scorer, path: str, batch: int) -> tuple[PromptComparison, ...]:
    """Force the reference's tokens through the candidate's loop, and score the logits of each step.

    Of the first `LOOKED_AT_TWICE` prompts two things are seen besides: what the loop decodes when
    it is free, and the same logits from one pass without a cache. Where a loop takes no tokens, the
    pass without a cache is scored, and all prompts are decoded freely. Raises UsageError for
    prompts that the candidate cannot take.
    """
    reference = Reference.open(path)
    stored = reference.stored
    require_same_vocabulary(scorer, stored.vocab_size)
    for row, count in zip(stored.rows, stored.counts, strict=True):
        scorer.require_fits([row], count)
    candidate = _Candidate(scorer, reference)
    compared: list[PromptComparison] = []
    for group in batches(stored.rows, stored.parts, batch, scorer):
        compared += candidate.compare(group, whole=not compared)
    return tuple(sorted(compared, key=lambda row: row.index))


@dataclass(frozen=True)
class _Seen:
    """What a candidate gave for one batch: logits [batch, n, vocab], and its own tokens [rows, n].

    `alone` are the logits of the pass without a cache, where there was one besides. Both are of the
    batch's first rows, and need not be of all.
    """

    logits: Tensor
    alone: Tensor | None
    free: Tensor | None


class _Candidate:
    """Compares batch after batch; the dtype of the logits is that of the first pass."""

    def __init__(self, scorer: Scorer, reference: Reference) -> None:
        self._scorer = scorer
        self._reference = reference
        self._dtype = torch.float32

    def compare(self, group: PromptBatch, *, whole: bool) -> list[PromptComparison]:
        """Compare the new prompts of a batch; `whole` asks for all that can be seen of it."""
        continuation = group.rows_of(self._reference.continuation)
        seen = self._seen(group, continuation, whole=whole)
        return [self._compare(index, row, seen) for row, index in enumerate(group.indices)]

    def _seen(self, group: PromptBatch, continuation: Tensor, *, whole: bool) -> _Seen:
        scorer, alone, free = self._scorer, None, None
        looped = scorer.looped_logits(group.tokens, continuation)
        if whole or looped is None:
            rows = len(continuation) if looped is None else LOOKED_AT_TWICE
            alone, self._dtype = scorer.forced_logits(
                first_rows(group.tokens, rows), continuation[:rows]
            )
            # another number of rows would be compiled anew
            loop_rows = len(continuation) if scorer.compiled else rows
            free = scorer.free(first_rows(group.tokens, loop_rows), continuation.shape[1])
        if looped is None:
            if alone is None:
                raise UsageError(f"nothing of {scorer.loop.name} can be compared.")
            return _Seen(alone, None, free)
        return _Seen(looped, alone, free)

    def _compare(self, index: int, row: int, seen: _Seen) -> PromptComparison:
        scorer, stored = self._scorer, self._reference.stored
        logits, tokens = self._reference.logits(index), self._reference.continuation[index]
        candidate = seen.logits[row]
        dtypes = (self._reference.logits_dtype, self._dtype)
        scored = score(logits, candidate, tokens, dtypes, stored.ends)
        own = _own_tokens(tokens, candidate, _row_of(seen.free, row))
        alone = _row_of(seen.alone, row)
        return PromptComparison(
            index=index,
            n_free=len(tokens),
            **vars(scored),
            **self._about(index, own),
            **_parting(tokens, own, logits, candidate),
            worst=worst_position(scored, logits, candidate, scorer.token_text),
            reprefill_kl=() if alone is None else divergence_of(alone, candidate),
        )

    def _about(self, index: int, own: Tensor) -> dict[str, Any]:
        """Return what a comparison says of its prompt, of both texts and of its loop."""
        scorer, stored = self._scorer, self._reference.stored
        return {
            "path": "" if scorer.unforced else scorer.loop.name,
            "unforced": scorer.unforced,
            "rounding_noise": stored.rounding_noise,
            "rounding_kl": stored.rounding_kl,
            "prompt": stored.prompts[index],
            "part": stored.parts[index],
            "n_prompt_tokens": len(stored.rows[index]),
            "reference_text": scorer.text(self._reference.continuation[index].tolist()),
            "candidate_text": scorer.text(own.tolist()),
        }


def _row_of(seen: Tensor | None, row: int) -> Tensor | None:
    """Return one row of what was seen of the first rows; None behind them."""
    return None if seen is None or row >= len(seen) else seen[row]


def _own_tokens(tokens: Tensor, logits: Tensor, free: Tensor | None) -> Tensor:
    """Return the [n] tokens that a loop decodes by itself.

    Where it was not left to, these are the likeliest ones up to the first that is not the
    reference's, and no more: behind that the logits [n, vocab] are about another text.
    """
    if free is not None:
        return free
    likeliest = logits.argmax(-1)
    place = first_difference(tokens, likeliest)
    return likeliest if place is None else likeliest[: place + 1]


def _parting(tokens: Tensor, own: Tensor, logits: Tensor, candidate: Tensor) -> dict[str, Any]:
    """Return where the texts part, and how each side ranks the other's token there.

    Up to the first difference both contexts are the same, so the teacher-forced rows [positions,
    vocab] speak about it.
    """
    place = first_difference(tokens, own)
    if place is None:
        return {"first_divergence": None}
    return {
        "first_divergence": place,
        "candidate_rank_in_reference": rank_of(logits[place], int(own[place])),
        "reference_rank_in_candidate": rank_of(candidate[place], int(tokens[place])),
    }


def first_difference(reference: Tensor, candidate: Tensor) -> int | None:
    """Return the index of the first unequal token of two rows, as far as both go, or None."""
    n = min(len(reference), len(candidate))
    unequal = (reference[:n] != candidate[:n]).nonzero()
    return int(unequal[0]) if len(unequal) else None
