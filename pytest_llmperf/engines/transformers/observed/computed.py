"""Whether a run computed what it gave out: every position, from logits that are numbers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pytest_llmperf.engines.outputs.decoding import autocast, eager
from pytest_llmperf.errors import InvalidRun

_MOST_LOGITS = 64
"""Positions whose logits are looked at: what is no number in one is none in those that follow."""


def require_positions(cache: Any, needed: int) -> None:
    """Raise InvalidRun where a cache holds fewer positions than a run has to compute.

    The last token of an output is not read again. A cache without keys and values (state spaces)
    does not tell.
    """
    held = max(_lengths(cache), default=0)
    if 0 < held < needed:
        raise InvalidRun(
            f"the cache holds {held} positions after the run, and {needed} are needed for its "
            f"prompt and output: {needed - held} tokens were not computed. "
            "Does the model's generate() repeat tokens, or make them up?"
        )


def require_finite(model: Any, row: Tensor, n_new: int, autocast_dtype: str | None) -> None:
    """Raise InvalidRun where the logits that a run's tokens were chosen from are not finite.

    `row` [n] has a prompt and its output, `n_new` tokens of it, without the last. They go once more
    through the model, past compiled graphs.
    """
    kept = min(n_new, _MOST_LOGITS)
    can_skip = "logits_to_keep" in inspect.signature(model.forward).parameters
    options = {"logits_to_keep": kept} if can_skip else {}
    with torch.no_grad(), autocast(row.device, autocast_dtype):
        output = eager(model)(input_ids=row[None], use_cache=False, **options)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        return
    wrong = int((~logits[0, -kept:].isfinite()).any(dim=-1).sum())
    if wrong:
        raise InvalidRun(
            f"the logits of {wrong} of the last {kept} positions of a run are not finite: the "
            "tokens that were chosen from them mean nothing. Are there such numbers in the "
            "weights, or does its dtype overflow? Try 'bf16' or 'fp32'."
        )


def _lengths(cache: Any) -> Iterator[int]:
    """Yield the positions that each layer of keys and values has seen."""
    for layer in getattr(cache, "layers", ()):
        has_length = hasattr(layer, "get_seq_length") and getattr(layer, "is_initialized", True)
        if has_length and not hasattr(layer, "recurrent_states"):
            yield int(layer.get_seq_length())
