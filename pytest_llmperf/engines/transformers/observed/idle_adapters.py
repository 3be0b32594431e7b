"""Adapters that change nothing, as they are before training."""

from __future__ import annotations

from typing import Any

from torch import nn


def is_idle(layer: Any, name: str) -> bool:
    """Whether a layer's product is zero: as peft starts it, before any training."""
    pairs = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
    return not any(all(_is_set(layer, side, name) for side in pair) for pair in pairs)


def _is_set(layer: Any, side: str, name: str) -> bool:
    """Whether one side of an adapter holds any value but zero."""
    by_adapter = getattr(layer, side)
    if name not in by_adapter:
        return False
    matrices = by_adapter[name]
    tensors = matrices.parameters() if isinstance(matrices, nn.Module) else [matrices]
    return any(bool(tensor.any()) for tensor in tensors)
