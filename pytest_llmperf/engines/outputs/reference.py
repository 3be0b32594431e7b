"""The baseline's greedy continuations and teacher-forced logits in a file.

A candidate is scored against them. Token ids go in, never text. Every batch of one reference has
the same rows and width (short last batches repeat rows), so that both sides have the same geometry
and a compiled loop needs one shape.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.engines.outputs.bounds import Bounds
from pytest_llmperf.engines.outputs.decoding import DecodeLoop, autocast, eager
from pytest_llmperf.engines.outputs.inputs import (
    TokenBatch,
    Vocabulary,
    left_padded,
    synthetic_rows,
    tokenise,
)
from pytest_llmperf.engines.outputs.reference_file import FORMAT, ReferenceFile
from pytest_llmperf.engines.outputs.scoring import rank_of, score, worst_position
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import PromptSet

SYNTHETIC_PROMPTS = 16
SYNTHETIC_TOKENS = 32


@dataclass(frozen=True)
class Scorer:
    """A model with the decode loop that is measured.

    Teacher-forced passes are eager; free-running text uses the loop.

    `new_cache` makes a quantized KV cache, which teacher-forced passes then read the prompt from,
    as decoding does. `bounds` are None where the engine keeps its own. `one_by_one`: the loop takes
    one sequence at a time. `writes`: this process writes files, and not another rank.
    """

    model: Any
    tokenizer: Any | None
    loop: DecodeLoop
    vocabulary: Vocabulary
    device: torch.device
    autocast_dtype: str | None
    new_cache: Callable[[], Any] | None = None
    bounds: Bounds | None = None
    one_by_one: bool = False
    writes: bool = True

    def require_fits(self, rows: list[list[int]], new_tokens: int) -> None:
        """Raise UsageError for prompts and outputs that are more than the model can take."""
        if self.bounds is not None:
            self.bounds.require(rows, [new_tokens] * len(rows))

    def forced_logits(self, batch: TokenBatch, continuation: Tensor) -> tuple[Tensor, torch.dtype]:
        """Return [batch, n, vocab] float32 logits and the dtype they had.

        They predict each token of `continuation` [batch, n].
        """
        inputs = _forced_inputs(batch, continuation)
        with torch.no_grad(), autocast(self.device, self.autocast_dtype):
            if self.new_cache is None:
                logits = self._forward(
                    continuation.shape[1],
                    input_ids=inputs.ids,
                    attention_mask=inputs.mask,
                    position_ids=inputs.positions,
                    use_cache=False,
                )
            else:
                logits = self._forward_in_two(batch.ids.shape[1], inputs, self.new_cache())
        return logits.float().cpu(), logits.dtype

    def _forward(self, n: int, **inputs: Any) -> Tensor:
        """Return the [batch, n, vocab] logits of the last positions."""
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            inputs["logits_to_keep"] = n
        # not the call: a model compiled for decoding would compile these shapes too
        logits: Tensor = eager(self.model)(**inputs).logits
        return logits[:, -n:]

    def _forward_in_two(self, width: int, inputs: _ForcedInputs, cache: Any) -> Tensor:
        """Run the prompt, `width` tokens, into a cache, then the continuation.

        The continuation attends to what the cache kept of the prompt.
        """
        total = inputs.ids.shape[1]
        logits = [self._forward_piece(slice(0, width), 1, inputs, cache)]
        if total > width:
            logits.append(self._forward_piece(slice(width, total), total - width, inputs, cache))
        return torch.cat(logits, dim=1)

    def _forward_piece(self, piece: slice, n: int, inputs: _ForcedInputs, cache: Any) -> Tensor:
        return self._forward(
            n,
            input_ids=inputs.ids[:, piece],
            attention_mask=inputs.mask[:, : piece.stop],
            position_ids=inputs.positions[:, piece],
            past_key_values=cache,
            use_cache=True,
        )

    def free(self, batch: TokenBatch, new_tokens: int) -> Tensor:
        """Return the [batch, new_tokens] tokens that the loop decodes.

        Row by row, without padding, where it takes one sequence at a time.
        """
        if not self.one_by_one:
            return self.loop.decode(batch, new_tokens).tokens
        rows = (batch.ids[i : i + 1, -length:] for i, length in enumerate(batch.lengths))
        return torch.cat([self._free_row(row, new_tokens) for row in rows])

    def _free_row(self, row: Tensor, new_tokens: int) -> Tensor:
        batch = TokenBatch(row, None, (row.shape[1],))
        return self.loop.decode(batch, new_tokens).tokens

    def text(self, ids: list[int]) -> str:
        """Return the decoded text, or the ids where there is no tokenizer."""
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        return str(self.tokenizer.decode(ids))

    def token_text(self, token: int) -> str:
        """Return the text of one token."""
        return self.text([token])


@dataclass(frozen=True)
class _ForcedInputs:
    """Inputs of a teacher-forced pass, each [batch, width + n - 1]."""

    ids: Tensor
    mask: Tensor
    positions: Tensor


def _forced_inputs(batch: TokenBatch, continuation: Tensor) -> _ForcedInputs:
    """Put all but the last token of `continuation` [batch, n] behind its prompts."""
    width = batch.ids.shape[1]
    ids = torch.cat([batch.ids, continuation[:, :-1].to(batch.ids.device)], dim=1)
    mask = torch.ones_like(ids)
    if batch.mask is not None:
        mask[:, :width] = batch.mask
    return _ForcedInputs(ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0))


def make_reference(
    scorer: Scorer, prompts: PromptSet, new_tokens: int, batch: int, path: str
) -> tuple[int, int]:
    """Decode and score `prompts` and write the file atomically.

    Returns the numbers of prompts and positions.
    """
    rows = prompt_rows(prompts, scorer)
    scorer.require_fits(rows, new_tokens)
    continuation, logits, dtype = _decode_and_score(scorer, rows, new_tokens, batch)
    if scorer.writes:
        texts = list(prompts.texts) or [scorer.text(row) for row in rows]
        tensors = {"continuation": continuation, "logits": logits, **_prompt_tensors(scorer, rows)}
        write_atomically(tensors, _metadata(texts, dtype), Path(path))
    return len(rows), len(rows) * new_tokens


def _prompt_tensors(scorer: Scorer, rows: list[list[int]]) -> dict[str, Tensor]:
    padded = left_padded(rows, scorer.vocabulary.pad, torch.device("cpu"))
    return {"prompt_ids": padded.ids, "lengths": torch.tensor(padded.lengths)}


def _decode_and_score(
    scorer: Scorer, rows: list[list[int]], new_tokens: int, batch: int
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Return the continuations [rows, n], their logits [rows, n, vocab], and the logits' dtype."""
    continuations, logits, dtype = [], [], torch.float32
    for tokens, size in batches(rows, batch, scorer):
        continuation = scorer.free(tokens, new_tokens)
        forced, dtype = scorer.forced_logits(tokens, continuation)
        continuations.append(continuation[:size])
        logits.append(forced[:size])
    return torch.cat(continuations), torch.cat(logits), dtype


def _metadata(texts: list[str], dtype: torch.dtype) -> dict[str, str]:
    return {
        "format": FORMAT,
        "logits_dtype": str(dtype).removeprefix("torch."),
        "prompts": json.dumps(texts),
    }


def compare_reference(scorer: Scorer, path: str, batch: int) -> tuple[PromptComparison, ...]:
    """Score the candidate on the reference's own tokens, then let it decode freely.

    Each prompt's comparison tells the first difference.
    """
    reference = Reference.open(path)
    reference.require_vocabulary(scorer)
    scorer.require_fits(reference.rows, reference.continuation.shape[1])
    compared: list[PromptComparison] = []
    for tokens, size in batches(reference.rows, batch, scorer):
        indices = range(len(compared), len(compared) + size)
        compared += _compare_batch(scorer, reference, tokens, indices)
    return tuple(compared)


def _compare_batch(
    scorer: Scorer, reference: Reference, tokens: TokenBatch, indices: range
) -> list[PromptComparison]:
    """Compare the prompts of a batch that are new, at `indices` of the reference."""
    continuation = repeated(reference.continuation, indices.start, tokens.ids.shape[0])
    logits, dtype = scorer.forced_logits(tokens, continuation)
    free = scorer.free(tokens, continuation.shape[1])
    rows = zip(indices, logits, free, strict=False)
    return [
        _compare(scorer, reference, index, candidate, own, dtype) for index, candidate, own in rows
    ]


def _compare(
    scorer: Scorer,
    reference: Reference,
    index: int,
    candidate: Tensor,
    free: Tensor,
    dtype: torch.dtype,
) -> PromptComparison:
    logits, tokens = reference.logits(index), reference.continuation[index]
    scored = score(logits, candidate, tokens, (reference.logits_dtype, dtype))
    place = first_difference(tokens, free)
    ranks = _ranks_of_others(place, tokens, free, logits, candidate)
    return PromptComparison(
        index=index,
        prompt=reference.prompts[index],
        n_prompt_tokens=len(reference.rows[index]),
        **vars(scored),
        n_free=len(tokens),
        first_divergence=place,
        candidate_rank_in_reference=ranks[0],
        reference_rank_in_candidate=ranks[1],
        reference_text=scorer.text(tokens.tolist()),
        candidate_text=scorer.text(free.tolist()),
        worst=worst_position(scored, logits, candidate, scorer.token_text),
    )


def _ranks_of_others(
    place: int | None, tokens: Tensor, free: Tensor, logits: Tensor, candidate: Tensor
) -> tuple[int, int] | tuple[None, None]:
    """Return the candidate's token's rank in the reference, and the other way round, at `place`.

    Up to the first difference both contexts are the same, so the teacher-forced rows [positions,
    vocab] speak about it.
    """
    if place is None:
        return None, None
    in_reference = rank_of(logits[place], int(free[place]))
    return in_reference, rank_of(candidate[place], int(tokens[place]))


def first_difference(reference: Tensor, candidate: Tensor) -> int | None:
    """Return the index of the first unequal token of two [n] rows, or None."""
    unequal = (reference != candidate).nonzero()
    return int(unequal[0]) if len(unequal) else None


def prompt_rows(prompts: PromptSet, scorer: Scorer) -> list[list[int]]:
    """Return the token ids of every prompt; synthetic sets give 16 prompts of 32 tokens."""
    if prompts.texts:
        return tokenise(prompts, scorer.tokenizer)
    drawn = synthetic_rows(prompts.seed, 0, SYNTHETIC_PROMPTS, SYNTHETIC_TOKENS, scorer.vocabulary)
    return [list(row) for row in drawn.tolist()]


def batches(rows: list[list[int]], batch: int, scorer: Scorer) -> Iterator[tuple[TokenBatch, int]]:
    """Yield batches of equal rows and width with how many of their rows are new.

    The last repeats rows from the front.
    """
    width = max(map(len, rows))
    for first in range(0, len(rows), batch):
        chosen = [rows[(first + i) % len(rows)] for i in range(batch)]
        tokens = left_padded(chosen, scorer.vocabulary.pad, scorer.device, width)
        yield tokens, min(batch, len(rows) - first)


def repeated(rows: Tensor, first: int, count: int) -> Tensor:
    """Return `count` rows from `first` on, around the end: the same choice as `batches` makes."""
    return rows[[(first + i) % len(rows) for i in range(count)]]


@dataclass(frozen=True)
class Reference:
    """An opened reference file. Logits are read a prompt at a time from the memory-mapped file."""

    path: Path
    prompts: tuple[str, ...]
    rows: list[list[int]]
    continuation: Tensor
    logits_dtype: torch.dtype
    vocab_size: int

    @classmethod
    def open(cls, path: str) -> Reference:
        """Read all but the logits.

        Raises WorkerError when the file is missing or not a reference.
        """
        stored = ReferenceFile.read(path, "pt")
        return cls(
            path=Path(path),
            prompts=stored.prompts,
            rows=stored.rows,
            continuation=stored.continuation,
            logits_dtype=getattr(torch, stored.logits_dtype),
            vocab_size=stored.vocab_size,
        )

    def logits(self, index: int) -> Tensor:
        """Return the [positions, vocab] float32 logits of one prompt."""
        with safe_open(self.path, framework="pt") as file:
            rows: Tensor = file.get_slice("logits")[index]
        return rows

    def require_vocabulary(self, scorer: Scorer) -> None:
        """Raise UsageError when the candidate's tokens are not the reference's."""
        size = int(scorer.model.config.get_text_config().vocab_size)
        if size != self.vocab_size:
            raise UsageError(_other_vocabulary(size, self.vocab_size))


def _other_vocabulary(size: int, reference_size: int) -> str:
    return (
        f"the candidate has a vocabulary of {size} tokens, its reference one of {reference_size}: "
        "their tokens cannot be compared. Take a reference of the same model."
    )


def write_atomically(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write beside `path`, then rename: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
