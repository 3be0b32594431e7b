"""Damages that show while tokens are decoded, behind a cache, and not in a pass without one."""

# ruff: noqa: D103 - the list of damages names each

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from damages import Undo, patched
from torch import Tensor
from transformers.cache_utils import DynamicLayer


def cache(
    edit: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
) -> Callable[[Any, Any], Undo]:
    """Change what a cache gives back when a single token is appended."""

    def apply(_model: Any, _tokenizer: Any) -> Undo:
        update = DynamicLayer.update

        def changed(self: Any, key: Tensor, value: Tensor, *args: Any, **named: Any) -> Any:
            keys, values = update(self, key, value, *args, **named)
            if key.shape[-2] > 1:
                return keys, values
            return edit(keys.clone(), values.clone(), keys.shape[-2])

        return patched(DynamicLayer, "update", changed)

    return apply


def stale(keys: Tensor, values: Tensor, _n: int) -> tuple[Tensor, Tensor]:
    values[..., -2, :] = values[..., -3, :]
    return keys, values


def forgets(n: int) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    def edit(keys: Tensor, values: Tensor, _n: int) -> tuple[Tensor, Tensor]:
        values[..., :-n, :] = 0
        return keys, values

    return edit


def loses_prompt(keys: Tensor, values: Tensor, _n: int) -> tuple[Tensor, Tensor]:
    values[..., -48:-40, :] = 0
    return keys, values


def wraps(n: int) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    def edit(keys: Tensor, values: Tensor, total: int) -> tuple[Tensor, Tensor]:
        if total > n:
            keys[..., : total - n, :], values[..., : total - n, :] = 0, 0
        return keys, values

    return edit


def coarse(bits: int) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    most = 2 ** (bits - 1) - 1

    def rounded(states: Tensor) -> Tensor:
        scale = states.abs().amax(-1, keepdim=True).clamp(min=1e-6) / most
        return (states / scale).round() * scale

    return lambda keys, values, _n: (rounded(keys), rounded(values))


def decoded_positions(move: Callable[[Tensor], Tensor]) -> Callable[[Any, Any], Undo]:
    def apply(model: Any, _tokenizer: Any) -> Undo:
        rotary = model.model.rotary_emb
        forward = rotary.forward

        def changed(x: Tensor, position_ids: Tensor) -> Any:
            alone = position_ids.shape[-1] == 1
            return forward(x, move(position_ids) if alone else position_ids)

        return patched(rotary, "forward", changed)

    return apply


def one_token_for_ever(model: Any, _tokenizer: Any) -> Undo:
    forward = model.forward

    @functools.wraps(forward)
    def changed(*args: Any, **named: Any) -> Any:
        out = forward(*args, **named)
        if named["input_ids"].shape[1] == 1:
            out.logits.fill_(-1e4)
            out.logits[..., 17] = 0
        return out

    return patched(model, "forward", changed)
