"""The baseline's greedy continuations and teacher-forced logits in a file.

A candidate is scored against them. Token ids go in, never text. Batches have the same rows and
width (short last batches repeat rows), so that both sides have the same geometry and a compiled
loop needs one shape; each long prompt is a batch of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pytest_llmperf.engines.outputs.inputs import (
    TokenBatch,
    first_rows,
    left_padded,
    synthetic_rows,
    tokenise,
)
from pytest_llmperf.engines.outputs.reference_file import FORMAT, ReferenceFile, Rounding
from pytest_llmperf.engines.outputs.scorer import Scorer
from pytest_llmperf.engines.outputs.scoring import score
from pytest_llmperf.workloads import PromptSet
from pytest_llmperf.workloads.prompts import LONG

SYNTHETIC_PROMPTS = 16
SYNTHETIC_TOKENS = 32
LONG_NEW_TOKENS = 8
"""Tokens behind a long prompt: it is its positions that are looked at."""
ROUNDED_PROMPTS = 8
"""Prompts of the first batch from which the noise of a dtype is taken: 256 positions."""


@dataclass(frozen=True)
class Questions:
    """What both sides are asked: prompts as ids, and how many tokens follow each of them."""

    texts: tuple[str, ...]
    rows: list[list[int]]
    parts: tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, prompts: PromptSet, scorer: Scorer, new_tokens: int) -> Questions:
        """Tokenise or draw the prompts, and cut long ones to what the model can take.

        Raises UsageError for another prompt that it cannot.
        """
        rows = prompt_rows(prompts, scorer)
        texts = list(prompts.texts) or [scorer.text(row) for row in rows]
        parts = [prompts.part(i) for i in range(len(rows))]
        counts = [_new_tokens(part, new_tokens) for part in parts]
        rows = [_cut(*row, scorer) for row in zip(rows, parts, counts, strict=True)]
        for row, count in zip(rows, counts, strict=True):
            scorer.require_fits([row], count)
        return cls(tuple(texts), rows, tuple(parts), tuple(counts)).without_repeated()

    def without_repeated(self) -> Questions:
        """Leave out long prompts that are the same since they were cut."""
        chosen = [
            i
            for i, part in enumerate(self.parts)
            if part != LONG or self.rows[i] not in self.rows[:i]
        ]
        return Questions(
            texts=tuple(self.texts[i] for i in chosen),
            rows=[self.rows[i] for i in chosen],
            parts=tuple(self.parts[i] for i in chosen),
            counts=tuple(self.counts[i] for i in chosen),
        )


def _new_tokens(part: str, new_tokens: int) -> int:
    return min(new_tokens, LONG_NEW_TOKENS) if part == LONG else new_tokens


def _cut(row: list[int], part: str, new_tokens: int, scorer: Scorer) -> list[int]:
    """Return the beginning of a long prompt that fits into the model, and others as they are."""
    positions = None if scorer.bounds is None else scorer.bounds.positions
    if part != LONG or positions is None:
        return row
    return row[: max(1, positions - new_tokens + 1)]


def make_reference(
    scorer: Scorer, prompts: PromptSet, new_tokens: int, batch: int, path: str
) -> tuple[int, int]:
    """Decode and score `prompts` and write the file atomically.

    Returns the numbers of prompts and positions.
    """
    questions = Questions.of(prompts, scorer, new_tokens)
    answers = _Answers.of(questions, scorer, batch)
    if scorer.writes:
        tensors = {
            "continuation": torch.nn.utils.rnn.pad_sequence(answers.continuations, True),
            "logits": torch.nn.utils.rnn.pad_sequence(answers.logits, True),
            "counts": torch.tensor(questions.counts),
            **_prompt_tensors(scorer, questions.rows),
        }
        write_atomically(tensors, _metadata(questions, answers, scorer), Path(path))
    return len(questions.rows), sum(questions.counts)


def _prompt_tensors(scorer: Scorer, rows: list[list[int]]) -> dict[str, Tensor]:
    padded = left_padded(rows, scorer.vocabulary.pad, torch.device("cpu"))
    return {"prompt_ids": padded.ids, "lengths": torch.tensor(padded.lengths)}


@dataclass(frozen=True)
class _Answers:
    """The continuation [n] and the logits [n, vocab] of each prompt, and the dtype of these."""

    continuations: list[Tensor]
    logits: list[Tensor]
    dtype: torch.dtype
    rounding: Rounding | None

    @classmethod
    def of(cls, questions: Questions, scorer: Scorer, batch: int) -> _Answers:
        n = len(questions.rows)
        continuations, logits = [torch.empty(0)] * n, [torch.empty(0)] * n
        dtype, rounding = torch.float32, None
        for group in batches(questions.rows, questions.parts, batch, scorer):
            continuation = scorer.free(group.tokens, questions.counts[group.indices[0]])
            forced, dtype = scorer.forced_logits(group.tokens, continuation)
            if dtype == torch.float32 and group.indices[0] == 0:
                rounding = _rounding(scorer, group, continuation, forced)
            for index, tokens, rows in zip(group.indices, continuation, forced, strict=False):
                continuations[index], logits[index] = tokens, rows
        return cls(continuations, logits, dtype, rounding)


def _rounding(
    scorer: Scorer, group: PromptBatch, continuation: Tensor, logits: Tensor
) -> Rounding | None:
    """Return how much the model's own logits [batch, n, vocab] move when it is rounded."""
    few = continuation[:ROUNDED_PROMPTS]
    rounded = scorer.rounded_logits(first_rows(group.tokens, ROUNDED_PROMPTS), few)
    if rounded is None:
        return None
    dtypes = (torch.float32, torch.float32)
    rows = zip(logits, rounded, few, strict=False)
    scored = [score(row, other, tokens, dtypes) for row, other, tokens in rows]
    kls = [kl for prompt in scored for kl in prompt.kl]
    signal = sum(prompt.signal for prompt in scored)
    noise = sum(prompt.noise for prompt in scored)
    if not signal > 0:
        return None
    return Rounding(noise=noise / signal, kl=sum(kls) / len(kls))


def _metadata(questions: Questions, answers: _Answers, scorer: Scorer) -> dict[str, str]:
    rounding = answers.rounding
    return {
        "format": FORMAT,
        "logits_dtype": str(answers.dtype).removeprefix("torch."),
        "prompts": json.dumps(questions.texts),
        "parts": json.dumps(questions.parts),
        "ends": json.dumps(ends_of(scorer)),
        "rounding": json.dumps(None if rounding is None else [rounding.noise, rounding.kl]),
    }


def ends_of(scorer: Scorer) -> list[int]:
    """Return the ids that end a sequence, as the model's config and its tokenizer name them."""
    config = scorer.model.config.get_text_config()
    named = [config.eos_token_id, getattr(scorer.tokenizer, "eos_token_id", None)]
    ids = [i for value in named for i in (value if isinstance(value, list | tuple) else [value])]
    size = int(config.vocab_size)
    return sorted({i for i in ids if isinstance(i, int) and 0 <= i < size})


def prompt_rows(prompts: PromptSet, scorer: Scorer) -> list[list[int]]:
    """Return the token ids of every prompt; synthetic sets give 16 prompts of 32 tokens."""
    if prompts.texts:
        return tokenise(prompts, scorer.tokenizer)
    drawn = synthetic_rows(prompts.seed, 0, SYNTHETIC_PROMPTS, SYNTHETIC_TOKENS, scorer.vocabulary)
    return [list(row) for row in drawn.tolist()]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts that go through a model together.

    `indices` are the prompts of the rows that are new; rows behind them are repetitions, whose
    prompts are in `repeated`.
    """

    tokens: TokenBatch
    indices: tuple[int, ...]
    repeated: tuple[int, ...] = ()

    def rows_of(self, continuation: Sequence[Tensor]) -> Tensor:
        """Return the [batch, n] continuations of all rows."""
        return torch.stack([continuation[i] for i in (*self.indices, *self.repeated)])


def batches(
    rows: list[list[int]], parts: Sequence[str], batch: int, scorer: Scorer
) -> Iterator[PromptBatch]:
    """Yield batches of equal rows and width, then each long prompt alone.

    The last batch of many repeats rows from the front.
    """
    many = [i for i, part in enumerate(parts) if part != LONG]
    yield from _equal_batches(rows, many, batch, scorer)
    for i, part in enumerate(parts):
        if part == LONG:
            tokens = left_padded([rows[i]], scorer.vocabulary.pad, scorer.device)
            yield PromptBatch(tokens, (i,))


def _equal_batches(
    rows: list[list[int]], many: list[int], batch: int, scorer: Scorer
) -> Iterator[PromptBatch]:
    width = max((len(rows[i]) for i in many), default=0)
    for first in range(0, len(many), batch):
        chosen = [many[(first + i) % len(many)] for i in range(batch)]
        padded = [rows[i] for i in chosen]
        tokens = left_padded(padded, scorer.vocabulary.pad, scorer.device, width)
        n_new = min(batch, len(many) - first)
        yield PromptBatch(tokens, tuple(chosen[:n_new]), tuple(chosen[n_new:]))


@dataclass(frozen=True)
class Reference:
    """An opened reference file. Logits are read a prompt at a time from the memory-mapped file.

    `continuation` has the [n] tokens behind each prompt.
    """

    path: Path
    stored: ReferenceFile
    continuation: tuple[Tensor, ...]
    logits_dtype: torch.dtype

    @classmethod
    def open(cls, path: str) -> Reference:
        """Read all but the logits.

        Raises WorkerError when the file is missing or not a reference.
        """
        stored = ReferenceFile.read(path, "pt")
        pairs = zip(stored.continuation, stored.counts, strict=True)
        continuation = tuple(tokens[:count] for tokens, count in pairs)
        return cls(Path(path), stored, continuation, getattr(torch, stored.logits_dtype))

    def logits(self, index: int) -> Tensor:
        """Return the [positions, vocab] float32 logits of one prompt."""
        with safe_open(self.path, framework="pt") as file:
            rows: Tensor = file.get_slice("logits")[index]
        return rows[: self.stored.counts[index]]


def write_atomically(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write beside `path`, then rename: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
