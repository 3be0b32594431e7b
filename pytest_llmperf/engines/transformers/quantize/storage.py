"""What quantized layers hold: tensors that are neither parameters nor buffers, and the format they are stored in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pytest_llmperf.instruments.layers import identity

PACKED_FOR_CPU = "packed-for-cpu"


def is_linear(module: nn.Module) -> bool:
    """A linear layer by class, or by shape: quantized replacements have in_features and out_features, and often no base class.

    An adapter's own small matrices, and what wraps a layer to add them, are not: the model's layer inside is.
    """
    if getattr(module, "belongs_to_adapter", False):
        return False
    if isinstance(module, (nn.Linear, Conv1D)):
        return True
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def logical_weights(layer: Any) -> int:
    """Weights that a linear layer stands for, whatever they are stored as."""
    if hasattr(layer, "in_features"):
        return int(layer.in_features) * int(layer.out_features)
    return int(layer.weight.numel())


def inner_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that hold `tensor`'s storage: itself, or those inside a wrapper subclass, at any depth."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for inner in (getattr(tensor, name) for name in names):
        if isinstance(inner, torch.Tensor):  # torch's DTensor lists its mesh too
            yield from inner_tensors(inner)


def side_tensors(layer: Any) -> Iterator[torch.Tensor]:
    """Tensors of a bitsandbytes layer beside its parameters: row scales of LLM.int8(), blocks' absmax and tables of 4 bit.

    LLM.int8() moves its scales from the weight to the layer's state at the first forward pass, and names the weight again
    there: a caller that counts bytes must count a tensor that lies in memory once only once.
    """
    # A packed layer's `weight` may be a method.
    weight = layer._parameters.get("weight")  # noqa: SLF001
    state = getattr(layer, "state", None)
    candidates = [
        getattr(owner, name, None)
        for owner in (weight, state)
        if owner is not None
        for name in ("CB", "SCB")
    ]
    quant_state = getattr(weight, "quant_state", None)
    for nested in (quant_state, getattr(quant_state, "state2", None)):
        candidates += (
            [getattr(nested, name, None) for name in ("absmax", "code", "offset")]
            if nested is not None
            else []
        )
    yield from (tensor for tensor in candidates if isinstance(tensor, torch.Tensor))


def stored_tensors(layer: nn.Module) -> list[torch.Tensor]:
    """The plain tensors that hold a layer's parameters and buffers, each once, its bias included."""
    own = [
        t
        for source in (layer.parameters(), layer.buffers())
        for tensor in source
        for t in inner_tensors(tensor)
    ]
    seen: dict[tuple[object, ...], torch.Tensor] = {}
    for tensor in (*own, *side_tensors(layer)):
        seen.setdefault(identity(tensor), tensor)
    if seen:
        return list(seen.values())
    packed: Any = getattr(layer, "weight", None)
    return [packed()] if callable(packed) else []


def weight_tensors(layer: nn.Module) -> list[torch.Tensor]:
    """`stored_tensors` without the bias."""
    bias = layer._parameters.get("bias")  # noqa: SLF001  # as in side_tensors
    skipped = {identity(bias)} if bias is not None else set()
    return [tensor for tensor in stored_tensors(layer) if identity(tensor) not in skipped]


def is_quantized(layer: nn.Module) -> bool:
    """The layer's largest tensor holds integers or 8-bit floats."""
    largest = max(stored_tensors(layer), key=lambda t: t.nbytes, default=None)
    return largest is not None and (not largest.is_floating_point() or largest.element_size() == 1)


def format_of(layer: nn.Module) -> str:
    """The storage format of a quantized layer, as core.quantization.Method.formats names it."""
    # A packed layer's `weight` may be a method.
    weight = layer._parameters.get("weight")  # noqa: SLF001
    if getattr(layer, "stored_format", None):
        return str(layer.stored_format)
    quant_state = getattr(weight, "quant_state", None)
    if quant_state is not None:
        return str(quant_state.quant_type)
    return "llm.int8" if type(weight).__name__ == "Int8Params" else type(weight).__name__


def layout_of(layer: nn.Module) -> str:
    """What core.quantization.layer_bytes must know of a layer beside its scheme and shape."""
    # As in side_tensors.
    quant_state = getattr(layer._parameters.get("weight"), "quant_state", None)  # noqa: SLF001
    return (
        PACKED_FOR_CPU
        if getattr(quant_state, "packing_format_for_cpu", False)
        else format_of(layer)
    )
