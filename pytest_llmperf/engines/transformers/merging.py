"""Adapters folded into the weights of their layers, each checked to be changed by its product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pytest_llmperf.engines.transformers.observed.holdings import storage_key
from pytest_llmperf.errors import LoadError, NotInEffect


def merge_layers(model: nn.Module, name: str, layers: Sequence[Any]) -> int:
    """Merge all layers of an adapter. Return how many of them changed.

    Raises NotInEffect for a layer that changed by something else than its product, and LoadError
    for one whose weight is another module's too.
    """
    for layer in layers:
        _require_own_weight(model, layer, name)
    return sum(_merge(layer, name) for layer in layers)


def _require_own_weight(model: nn.Module, layer: Any, name: str) -> None:
    """Raise LoadError for a weight that another module uses: merging would change both."""
    base = layer.get_base_layer()
    place = _place(base.weight)
    for path, module in model.named_modules():
        places = map(_place, module.parameters(recurse=False))
        if module is not base and place in places:
            raise LoadError(
                f"adapter {name!r} changes a layer whose weight is that of {path!r} too (tied "
                "weights): merging it would change both. Leave out ':merged', or untie them in the "
                "checkpoint (tie_word_embeddings=False, with a weight of the head's own)."
            )


def _place(weight: Tensor) -> tuple[object, int]:
    """Return where a weight begins: tensors of one file lie in one storage, side by side."""
    return storage_key(weight), int(weight.storage_offset())


def _merge(layer: Any, name: str) -> bool:
    """Merge one layer. Return False if its weights did not change: the product was rounded away.

    Raises NotInEffect for weights that changed by something else.
    """
    before = _base_weight(layer).clone()
    delta = layer.get_delta_weight(name)
    layer.merge(safe_merge=True, adapter_names=[name])
    after = _base_weight(layer)
    # DoRA and its kind change the weights by more than a product.
    if name not in layer.lora_variant:
        _require_sum(name, after, before.float(), delta.float())
    return not torch.equal(before, after) or not bool(delta.any())


def _base_weight(layer: Any) -> Tensor:
    weight: Tensor = layer.get_base_layer().weight.data
    return weight


def _require_sum(name: str, weight: Tensor, base: Tensor, delta: Tensor) -> None:
    if not _is_sum(weight, base, delta):
        raise NotInEffect(
            f"adapter {name!r}: merging changed a layer's weights by something else than "
            "its product B·A."
        )


def _is_sum(weight: Tensor, base: Tensor, delta: Tensor) -> bool:
    """Whether `weight` is the sum of both, to the rounding of its dtype."""
    total = base + delta
    allowed = torch.finfo(weight.dtype).eps * (base.abs() + delta.abs() + total.abs())
    return bool(((weight.float() - total).abs() <= allowed).all())
