"""Agreement of a server with a reference. Imports no torch.

Token ids go in, log-probabilities of the reference's own tokens come out. vLLM's protocol gives,
for each token of a prompt, its log-probability and its rank over the whole vocabulary
(`prompt_logprobs`), and the ids of what it generated (`return_token_ids`). That is top-1, top-5,
perplexity, and where two texts part; what needs the logits of all tokens (KL, SQNR) is not
measurable.

Nobody can make a server decode given tokens. What it says of a prompt comes from a prefill; of its
decoding there are the tokens that it generates and their own log-probabilities (`logprobs`), which
are scored in place of the prefill's as long as both texts are the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from safetensors import safe_open
from tokenizers import Tokenizer

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.engines.outputs.reference_file import ReferenceFile
from pytest_llmperf.errors import UsageError

TOP = 5
PARTIAL = "a server gives log-probabilities of some tokens, not the logits of all"
UNFORCED = "a server takes no tokens from outside"

Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Sends the fields of a completion and returns its first choice."""

Logits = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the reference wrote: prompts as ids, and its greedy continuations.

    Its logits [prompts, positions, vocabulary] are read a prompt at a time.
    """

    path: Path
    prompts: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    continuations: tuple[tuple[int, ...], ...]
    parts: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: str) -> Reference:
        """Read all but the logits.

        Raises WorkerError when the file is missing or not a reference.
        """
        stored = ReferenceFile.read(path, "np")
        pairs = zip(stored.continuation.tolist(), stored.counts, strict=True)
        return cls(
            path=Path(path),
            prompts=stored.prompts,
            rows=tuple(map(tuple, stored.rows)),
            continuations=tuple(tuple(tokens[:count]) for tokens, count in pairs),
            parts=stored.parts,
        )

    def logits(self, index: int) -> Logits:
        """Return the [positions, vocabulary] logits of one prompt."""
        with safe_open(self.path, framework="np") as file:
            rows: Logits = file.get_slice("logits")[index]
        return rows[: len(self.continuations[index])]


@dataclass(frozen=True)
class ServerAnswer:
    """What a server says about one prompt.

    `logprobs` are what it says of each token of the reference's continuation: token id as text ->
    `logprob` and `rank`, which begins with 1. `free` are its own tokens, and `free_logprobs` what
    it says of each of them as it decodes, empty where it says nothing.
    """

    logprobs: Sequence[dict[str, Any]]
    free: tuple[int, ...]
    free_logprobs: tuple[float, ...] = ()

    def ranks(self, tokens: Sequence[int]) -> list[int]:
        """Return the rank of each of the reference's tokens, from 0."""
        return [int(row["rank"]) - 1 for row in self._rows_of(tokens)]

    def own_logprobs(self, tokens: Sequence[int]) -> tuple[float, ...]:
        """Return the log-probability of each of the reference's tokens.

        It is what the server said as it decoded them, and of tokens that it did not decode what it
        says of them as a prompt.
        """
        of_prompt = tuple(float(row["logprob"]) for row in self._rows_of(tokens))
        place = _first_difference(self.free, tokens)
        decoded = self.free_logprobs[: len(tokens) if place is None else place]
        return (*decoded, *of_prompt[len(decoded) :])

    def first_tokens(self) -> list[int]:
        """Return the token that the server ranks first at each position."""
        return [int(min(row, key=lambda token: row[token]["rank"])) for row in self.logprobs]

    def _rows_of(self, tokens: Sequence[int]) -> list[dict[str, Any]]:
        return [row[str(token)] for row, token in zip(self.logprobs, tokens, strict=True)]


async def compare(
    ask: Ask, reference: Reference, tokenizer: Tokenizer | None, batch: int
) -> tuple[PromptComparison, ...]:
    """Score the server on the reference's own tokens, then let it decode freely.

    `batch` prompts are asked at once.

    Raises:
        UsageError: its answers have no log-probabilities of the prompt, or no token ids.
    """
    text_of = _text_of(tokenizer)
    compared: list[PromptComparison] = []
    for first in range(0, len(reference.rows), batch):
        indices = range(first, min(first + batch, len(reference.rows)))
        answers = await asyncio.gather(*(_answer(ask, reference, index) for index in indices))
        for index, answer in zip(indices, answers, strict=True):
            compared.append(_compare(reference, index, answer, text_of))
    return tuple(compared)


async def _answer(ask: Ask, reference: Reference, index: int) -> ServerAnswer:
    row, continuation = reference.rows[index], reference.continuations[index]
    logprobs = await _forced_logprobs(ask, row, continuation)
    return ServerAnswer(logprobs, *await _free_tokens(ask, row, len(continuation)))


async def _forced_logprobs(
    ask: Ask, row: Sequence[int], continuation: Sequence[int]
) -> list[dict[str, Any]]:
    """Return what the server says of each token of the reference's continuation."""
    prompt = [*row, *continuation]
    choice = await ask({"prompt": prompt, "max_tokens": 1, "prompt_logprobs": TOP})
    logprobs = choice.get("prompt_logprobs")
    if not _is_list_of(logprobs, len(prompt)):
        raise UsageError(
            "agreement needs log-probabilities of a prompt's tokens, "
            f"and this server gives none: {PARTIAL}."
        )
    return logprobs[len(row) :]


def _is_list_of(value: object, length: int) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) == length


async def _free_tokens(
    ask: Ask, row: Sequence[int], n: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the ids of the `n` tokens that the server decodes greedily, and what it says of them.

    That is their log-probabilities, which not every server gives.
    """
    choice = await ask(
        {"prompt": list(row), **_exactly(n), "return_token_ids": True, "logprobs": 1}
    )
    ids = choice.get("token_ids")
    if not _is_list_of(ids, n):
        raise UsageError(
            "agreement needs the ids of the tokens that were generated, "
            "and this server does not return them."
        )
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
    if not _is_list_of(logprobs, n) or None in logprobs:
        return tuple(ids), ()
    return tuple(ids), tuple(map(float, logprobs))


def _exactly(n: int) -> dict[str, Any]:
    """Return the fields of a request for `n` tokens, whatever they are."""
    return {"max_tokens": n, "min_tokens": n, "ignore_eos": True}


def _compare(
    reference: Reference,
    index: int,
    answer: ServerAnswer,
    text_of: Callable[[Sequence[int]], str],
) -> PromptComparison:
    logits, tokens = reference.logits(index).astype(np.float64), reference.continuations[index]
    ranks = answer.ranks(tokens)
    parting = _parting(answer, tokens, logits, ranks)
    return PromptComparison(
        index=index,
        prompt=reference.prompts[index],
        n_prompt_tokens=len(reference.rows[index]),
        top1=_same_first(answer, logits),
        top5=tuple(rank < TOP for rank in ranks),
        kl=(),
        reference_logprob=_reference_logprobs(logits, tokens),
        candidate_logprob=answer.own_logprobs(tokens),
        signal=0.0,
        noise=0.0,
        max_abs_logit_error=0.0,
        n_free=len(tokens),
        first_divergence=parting.place,
        candidate_rank_in_reference=parting.candidate_rank_in_reference,
        reference_rank_in_candidate=parting.reference_rank_in_candidate,
        reference_text=text_of(tokens),
        candidate_text=text_of(answer.free),
        partial=PARTIAL,
        part=reference.parts[index] if reference.parts else "",
        unforced=UNFORCED,
    )


class Parting(NamedTuple):
    """Where two texts part, and how each ranks the token of the other there."""

    place: int | None = None
    candidate_rank_in_reference: int | None = None
    reference_rank_in_candidate: int | None = None


def _parting(
    answer: ServerAnswer, tokens: Sequence[int], logits: Logits, ranks: Sequence[int]
) -> Parting:
    """Return where the server's own text parts from the reference's tokens.

    Up to the first difference both contexts are the same, so the teacher-forced rows speak about
    it.
    """
    place = _first_difference(answer.free, tokens)
    if place is None:
        return Parting()
    return Parting(place, _rank(logits[place], answer.free[place]), ranks[place])


def _same_first(answer: ServerAnswer, logits: Logits) -> tuple[bool, ...]:
    """Return for each position whether server and reference rank the same token first."""
    pairs = zip(answer.first_tokens(), _likeliest(logits), strict=True)
    return tuple(token == reference_token for token, reference_token in pairs)


def _likeliest(logits: Logits) -> list[int]:
    """Return the likeliest token at each position of [positions, vocabulary] logits."""
    tokens: list[int] = logits.argmax(axis=-1).tolist()
    return tokens


def _first_difference(free: Sequence[int], tokens: Sequence[int]) -> int | None:
    """Return the index of the first unequal token, or None."""
    return next(_unequal_places(free, tokens), None)


def _unequal_places(free: Sequence[int], tokens: Sequence[int]) -> Iterator[int]:
    pairs = enumerate(zip(free, tokens, strict=True))
    return (i for i, (candidate, reference) in pairs if candidate != reference)


def _rank(row: Logits, token: int) -> int:
    """Return how many tokens stand above `token` in a [vocabulary] row; 0 is the argmax."""
    return int((row > row[token]).sum())


def _reference_logprobs(logits: Logits, tokens: Sequence[int]) -> tuple[float, ...]:
    return tuple(_logprob(row, token) for row, token in zip(logits, tokens, strict=True))


def _logprob(row: Logits, token: int) -> float:
    top = row.max()
    return float(row[token] - top - np.log(np.exp(row - top).sum()))


def _text_of(tokenizer: Tokenizer | None) -> Callable[[Sequence[int]], str]:
    if tokenizer is None:
        return lambda ids: " ".join(map(str, ids))
    return lambda ids: str(tokenizer.decode(list(ids)))
