"""The requests of a batch of different lengths.

Each is a prompt of token ids and a number of output tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_llmperf.engines.outputs.inputs import Vocabulary, synthetic_rows, tokenise
from pytest_llmperf.workloads import Batch


@dataclass(frozen=True)
class BatchRequests:
    """The requests of one repetition: prompts of token ids, and the output tokens of each."""

    rows: list[list[int]]
    new_tokens: tuple[int, ...]

    @property
    def positions(self) -> int:
        """Positions that the requests need; nothing is asked after a last token."""
        return sum(map(len, self.rows)) + sum(self.new_tokens) - len(self.rows)


def batch_requests(
    work: Batch, repetition: int, vocabulary: Vocabulary, tokenizer: Any | None
) -> BatchRequests:
    """Return the requests of a repetition.

    Their prompts are fresh synthetic ones of the drawn lengths, or the texts, as often as they are
    needed.
    """
    if work.prompt_lengths is None:
        rows = _text_rows(work, tokenizer)
    else:
        rows = _synthetic_rows(work, work.prompt_lengths, repetition, vocabulary)
    return BatchRequests(rows, work.output_lengths)


def _text_rows(work: Batch, tokenizer: Any | None) -> list[list[int]]:
    encoded = tokenise(work.prompts, tokenizer)
    return [encoded[i % len(encoded)] for i in range(work.count)]


def _synthetic_rows(
    work: Batch, lengths: Sequence[int], repetition: int, vocabulary: Vocabulary
) -> list[list[int]]:
    seed, longest = work.prompts.seed, max(lengths)
    drawn = synthetic_rows(seed, repetition, work.count, longest, vocabulary).tolist()
    return [row[:length] for row, length in zip(drawn, lengths, strict=True)]


def matrix(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return [rows, longest] ids with -1 behind shorter rows, for hashing."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows], dtype=torch.long)
