"""The logits of every position of a prompt, taken where vLLM's model runner computes them.

They are those of all of the vocabulary, not of a top k.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pytest_llmperf.errors import InvalidRun


@dataclass
class Captured:
    """Logits of one request, step by step.

    The first product of a step is that of the sampled position, the rest the prompt's.
    """

    sampled: Tensor | None = None
    prompt: list[Tensor] = field(default_factory=list)
    dtype: torch.dtype = torch.float32
    hidden_dtype: torch.dtype = torch.float32
    _in_step: int = 0

    def note(self, hidden: Tensor, logits: Tensor) -> None:
        """Take in one product of the output head."""
        self.dtype, self.hidden_dtype = logits.dtype, hidden.dtype
        rows = logits.detach().float().cpu()
        if self._in_step:
            self.prompt.append(rows)
        else:
            self.sampled = rows
        self._in_step += 1

    def end_of_step(self) -> None:
        """Note that the next product belongs to another step."""
        self._in_step = 0

    def rows(self, positions: int, vocab_size: int) -> Tensor:
        """Return [positions, vocab] float32 logits after each token of the prompt.

        They predict each token after the first, and the one that follows the last. Raises
        InvalidRun if other positions than these were computed.
        """
        if self.sampled is None:
            raise InvalidRun("vLLM computed no logits for a prompt.")
        rows = torch.cat([*self.prompt, self.sampled])
        if rows.shape[0] != positions:
            raise InvalidRun(
                f"vLLM computed logits of {rows.shape[0]} positions "
                f"of a prompt of {positions} tokens."
            )
        return rows[:, :vocab_size]


@contextmanager
def capture(model: Any) -> Iterator[Captured]:
    """Note what `model.compute_logits` returns while the block runs.

    Nothing is changed in between and nothing stays.
    """
    captured = Captured()
    original = model.compute_logits

    def compute_logits(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        logits = original(hidden, *args, **kwargs)
        if logits is None:
            raise InvalidRun("this rank of vLLM does not see the logits.")
        captured.note(hidden, logits)
        return logits

    model.compute_logits = compute_logits
    try:
        yield captured
    finally:
        del model.compute_logits
