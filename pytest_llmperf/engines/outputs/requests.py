"""The requests of a batch of different lengths: prompts of token ids and the output length of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_llmperf.engines.outputs.inputs import Vocabulary, synthetic_rows, tokenise
from pytest_llmperf.workloads import Batch


@dataclass(frozen=True)
class Asked:
    """The requests of one repetition: prompts of token ids, and the number of output tokens of each."""

    rows: list[list[int]]
    new_tokens: tuple[int, ...]

    @property
    def positions(self) -> int:
        """Positions that the requests need; nothing is asked after a last token."""
        return sum(map(len, self.rows)) + sum(self.new_tokens) - len(self.rows)


def asked(work: Batch, repetition: int, vocabulary: Vocabulary, tokenizer: Any | None) -> Asked:
    """The prompts of a repetition: fresh synthetic ones of the drawn lengths, or the texts, as often as they are needed."""
    lengths = work.prompt_lengths
    if lengths is None:
        encoded = tokenise(work.prompts, tokenizer)
        rows = [encoded[i % len(encoded)] for i in range(work.count)]
    else:
        drawn = synthetic_rows(
            work.prompts.seed, repetition, work.count, max(lengths), vocabulary
        ).tolist()
        rows = [row[:length] for row, length in zip(drawn, lengths, strict=True)]
    return Asked(rows, work.output_lengths)


def matrix(rows: Sequence[Sequence[int]]) -> Tensor:
    """[rows, longest] ids with -1 behind shorter rows, for hashing."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows], dtype=torch.long)
