"""Adapters that change nothing: as they are before training, or where no pass goes through them."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

from torch import nn


def is_idle(layer: Any, name: str) -> bool:
    """Whether a layer's product is zero: as peft starts it, or where its scale is 0."""
    if layer.scaling.get(name) == 0:
        return True
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


def bypassed(model: nn.Module, name: str, called: AbstractSet[str]) -> int:
    """Return how many layers of an adapter a forward pass went past.

    It called the module around such a layer and not the layer, whose weight that module may have
    multiplied itself. `called` has the paths of the modules that were called. A layer that hangs in
    a list of modules may be an expert that no token chose, and does not count.
    """
    return sum(
        path not in called and path.rpartition(".")[0] in called
        for path, module in model.named_modules()
        if _has_adapter(module, name)
    )


def _has_adapter(module: nn.Module, name: str) -> bool:
    matrices = (getattr(module, side, ()) for side in ("lora_A", "lora_embedding_A"))
    return any(name in by_adapter for by_adapter in matrices)
