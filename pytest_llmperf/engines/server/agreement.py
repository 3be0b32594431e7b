"""Agreement of a server with a reference: token ids go in, log-probabilities of the reference's own tokens come out. No torch.

vLLM's protocol gives, for each token of a prompt, its log-probability and its rank over the whole vocabulary (`prompt_logprobs`),
and the ids of what it generated (`return_token_ids`). That is top-1, top-5, perplexity, and where two texts part; what needs the
logits of all tokens (KL, SQNR) is not measurable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from tokenizers import Tokenizer

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.engines.outputs.reference_file import ReferenceFile
from pytest_llmperf.errors import UsageError

TOP = 5
PARTIAL = "a server gives log-probabilities of some tokens, not the logits of all"

Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Sends the fields of a completion and returns its first choice."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the reference wrote: prompts as ids, its greedy continuations, and its logits [prompts, positions, vocabulary]."""

    path: Path
    prompts: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    continuations: tuple[tuple[int, ...], ...]

    @classmethod
    def open(cls, path: str) -> Reference:
        """All but the logits. Raises WorkerError when the file is missing or not a reference."""
        found = ReferenceFile.read(path, "np")
        return cls(
            path=Path(path),
            prompts=found.prompts,
            rows=tuple(map(tuple, found.rows)),
            continuations=tuple(map(tuple, found.continuation.tolist())),
        )

    def logits(self, index: int) -> np.ndarray[Any, Any]:
        """[positions, vocabulary] of one prompt."""
        with safe_open(self.path, framework="np") as file:
            rows: np.ndarray[Any, Any] = file.get_slice("logits")[index]
        return rows


async def compare(
    ask: Ask, reference: Reference, tokenizer: Tokenizer | None, batch: int
) -> tuple[PromptComparison, ...]:
    """Score the server on the reference's own tokens, then let it decode freely.

    `batch` prompts at once.

    Raises:
        UsageError: its answers have no log-probabilities of the prompt, or no token ids.
    """
    text = _texts(tokenizer)
    compared: list[PromptComparison] = []
    for first in range(0, len(reference.rows), batch):
        indices = range(first, min(first + batch, len(reference.rows)))
        answers = await asyncio.gather(*(_ask_both(ask, reference, index) for index in indices))
        compared += [
            _compared(reference, index, *answer, text)
            for index, answer in zip(indices, answers, strict=True)
        ]
    return tuple(compared)


async def _ask_both(
    ask: Ask, reference: Reference, index: int
) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
    """What it says of each token of the reference's continuation, and its own tokens."""
    row, continuation = reference.rows[index], reference.continuations[index]
    forced = await ask({"prompt": [*row, *continuation], "max_tokens": 1, "prompt_logprobs": TOP})
    said = forced.get("prompt_logprobs")
    if not isinstance(said, list) or len(said) != len(row) + len(continuation):
        raise UsageError(
            f"agreement needs log-probabilities of a prompt's tokens, and this server gives none: {PARTIAL}."
        )
    n = len(continuation)
    free = await ask(
        {
            "prompt": list(row),
            "max_tokens": n,
            "min_tokens": n,
            "ignore_eos": True,
            "return_token_ids": True,
        }
    )
    ids = free.get("token_ids")
    if not isinstance(ids, list) or len(ids) != n:
        raise UsageError(
            "agreement needs the ids of the tokens that were generated, and this server does not return them."
        )
    return said[len(row) :], tuple(ids)


def _compared(
    reference: Reference,
    index: int,
    said: Sequence[dict[str, Any]],
    free: tuple[int, ...],
    text: Callable[[Sequence[int]], str],
) -> PromptComparison:
    logits, tokens = reference.logits(index).astype(np.float64), reference.continuations[index]
    ranks = [int(each[str(token)]["rank"]) - 1 for each, token in zip(said, tokens, strict=True)]
    at = next(
        (i for i, (ours, theirs) in enumerate(zip(free, tokens, strict=True)) if ours != theirs),
        None,
    )
    return PromptComparison(
        index=index,
        prompt=reference.prompts[index],
        n_prompt_tokens=len(reference.rows[index]),
        top1=tuple(
            _first(each) == int(row.argmax()) for each, row in zip(said, logits, strict=True)
        ),
        top5=tuple(rank < TOP for rank in ranks),
        kl=(),
        reference_logprob=tuple(
            _logprob(row, token) for row, token in zip(logits, tokens, strict=True)
        ),
        candidate_logprob=tuple(
            float(each[str(token)]["logprob"]) for each, token in zip(said, tokens, strict=True)
        ),
        signal=0.0,
        noise=0.0,
        max_abs_logit_error=0.0,
        n_free=len(tokens),
        first_divergence=at,
        # up to the first difference both contexts are the same, so the teacher-forced rows speak
        # about it
        candidate_rank_in_reference=None
        if at is None
        else int((logits[at] > logits[at][free[at]]).sum()),
        reference_rank_in_candidate=None if at is None else ranks[at],
        reference_text=text(tokens),
        candidate_text=text(free),
        partial=PARTIAL,
    )


def _first(said: dict[str, Any]) -> int:
    """The token that the server ranks first."""
    return int(min(said, key=lambda token: said[token]["rank"]))


def _logprob(row: np.ndarray[Any, Any], token: int) -> float:
    top = row.max()
    return float(row[token] - top - np.log(np.exp(row - top).sum()))


def _texts(tokenizer: Tokenizer | None) -> Callable[[Sequence[int]], str]:
    if tokenizer is None:
        return lambda ids: " ".join(map(str, ids))
    return lambda ids: str(tokenizer.decode(list(ids)))
