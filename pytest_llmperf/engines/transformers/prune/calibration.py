"""The text that pruning is calibrated on.

It is the bundled prompts as rows of token ids, or random ids where there is no tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from pytest_llmperf.engines.outputs.bounds import context_length
from pytest_llmperf.engines.outputs.inputs import Vocabulary, ids_hash, synthetic_rows, tokenise
from pytest_llmperf.workloads import PromptSet

ROW_TOKENS = 128
SYNTHETIC_ROWS = 8
PROMPTS = "short-chat"


@dataclass(frozen=True)
class Calibration:
    """Rows of ids [rows, tokens], all of one length and without padding, and their source."""

    rows: Tensor
    source: str

    @property
    def facts(self) -> dict[str, str | int | float]:
        """Return what is recorded with a run."""
        return {
            "calibration": self.source,
            "calibration_hash": ids_hash(self.rows),
            "calibration_tokens": self.rows.numel(),
        }


def calibration(model: Any, tokenizer: Any | None, device: torch.device, seed: int) -> Calibration:
    """Cut the bundled prompts, one after the other, into rows.

    They are in the model's chat template where it has one. A model without a tokenizer has no text
    of its own: ids are drawn from `seed`, and the source says so.
    """
    if tokenizer is None:
        prompts = PromptSet.synthetic(seed)
        rows = synthetic_rows(seed, 0, SYNTHETIC_ROWS, ROW_TOKENS, Vocabulary.of(model, None))
    else:
        prompts = PromptSet.bundled(PROMPTS)
        rows = _text_rows(prompts, tokenizer, _row_tokens(model))
    return Calibration(rows.to(device), prompts.name)


def _text_rows(prompts: PromptSet, tokenizer: Any, length: int) -> Tensor:
    return in_rows(list(chain.from_iterable(tokenise(prompts, tokenizer))), length)


def in_rows(ids: list[int], length: int) -> Tensor:
    """Return consecutive ids as [rows, length].

    Ids that do not fill a row are left out, unless that row is the only one.
    """
    length = min(length, len(ids))
    count = len(ids) // length
    return torch.tensor(ids[: count * length], dtype=torch.long).view(count, length)


def _row_tokens(model: Any) -> int:
    """Return ROW_TOKENS, or less for a model with fewer positions."""
    positions = context_length(model.config.get_text_config())
    return min(ROW_TOKENS, int(positions or ROW_TOKENS))
