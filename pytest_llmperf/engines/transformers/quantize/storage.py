"""What layers hold: their tensors, also those that are neither parameters nor buffers.

For quantized layers it also says the format that they are stored in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from pytest_llmperf.instruments.layers import identity

PACKED_FOR_CPU = "packed-for-cpu"


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, by its class or by its shape.

    Quantized replacements have in_features and out_features, and often no base class. An adapter's
    own small matrices do not count, nor does what wraps a layer to add them: the model's layer
    inside does.
    """
    if getattr(module, "belongs_to_adapter", False):
        return False
    return isinstance(module, (nn.Linear, Conv1D)) or _has_shape_of_linear(module)


def _has_shape_of_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def logical_weights(layer: Any) -> int:
    """Return the number of weights that a linear layer stands for, whatever stores them.

    Of a layer that transformers divides among tensor-parallel ranks, this rank's weights count.
    """
    weight = parameter_of(layer, "weight")
    if isinstance(weight, DTensor) and not _is_by_fsdp(weight):
        return int(weight.to_local().numel())
    if hasattr(layer, "in_features"):
        return int(layer.in_features) * int(layer.out_features)
    return int(layer.weight.numel())


def _is_by_fsdp(weight: DTensor) -> bool:
    """Whether a weight is divided by our FSDP, and computed whole on each rank.

    transformers' mesh has no names of dimensions in 5.17, and "tp" in 5.23.
    """
    return "fsdp" in (weight.device_mesh.mesh_dim_names or ())


def inner_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the plain tensors that hold `tensor`'s storage.

    That is the tensor itself, or those inside a wrapper subclass, at any depth.
    """
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for inner in (getattr(tensor, name) for name in names):
        if isinstance(inner, torch.Tensor):  # torch's DTensor lists its mesh too
            yield from inner_tensors(inner)


def plain_tensors(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the `inner_tensors` of all tensors."""
    return chain.from_iterable(map(inner_tensors, tensors))


def side_tensors(layer: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a bitsandbytes layer beside its parameters.

    They are the row scales of LLM.int8(), and blocks' absmax and tables of 4 bit. LLM.int8() moves
    its scales from the weight to the layer's state at the first forward pass, and names the weight
    again there: a caller that counts bytes must count a tensor that lies in memory once only once.
    """
    weight = parameter_of(layer, "weight")
    for owner in (weight, getattr(layer, "state", None)):
        yield from _tensor_attributes(owner, "CB", "SCB")
    quant_state = getattr(weight, "quant_state", None)
    for state in (quant_state, getattr(quant_state, "state2", None)):
        yield from _tensor_attributes(state, "absmax", "code", "offset")


def _tensor_attributes(owner: object, *names: str) -> Iterator[torch.Tensor]:
    """Yield those of the attributes that there are, and that are tensors."""
    for name in names:
        attribute = getattr(owner, name, None)
        if isinstance(attribute, torch.Tensor):
            yield attribute


def parameter_of(layer: Any, name: str) -> Any:
    """Return the parameter or None, and never the method that a packed layer has in its place."""
    return layer._parameters.get(name)  # noqa: SLF001


def stored_tensors(layer: nn.Module) -> list[torch.Tensor]:
    """Return the plain tensors that hold a layer's parameters and buffers, its bias included.

    Each tensor in memory is one.
    """
    own_tensors = chain(layer.parameters(), layer.buffers())
    tensors = distinct(chain(plain_tensors(own_tensors), side_tensors(layer)))
    if tensors:
        return tensors
    packed: Any = getattr(layer, "weight", None)
    return [packed()] if callable(packed) else []


def distinct(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return each tensor in memory once."""
    return list({identity(tensor): tensor for tensor in tensors}.values())


def weight_tensors(layer: nn.Module) -> list[torch.Tensor]:
    """Return `stored_tensors` without the bias."""
    bias = parameter_of(layer, "bias")
    skipped = None if bias is None else identity(bias)
    return [tensor for tensor in stored_tensors(layer) if identity(tensor) != skipped]


def is_quantized(layer: nn.Module) -> bool:
    """Whether the layer's largest tensor holds integers or 8-bit floats."""
    largest = max(stored_tensors(layer), key=lambda tensor: tensor.nbytes, default=None)
    return largest is not None and _is_low_precision(largest)


def _is_low_precision(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or tensor.element_size() == 1


def format_of(layer: nn.Module) -> str:
    """Return the storage format of a quantized layer, by core.quantization.Method.formats."""
    if getattr(layer, "stored_format", None):
        return str(layer.stored_format)
    weight = parameter_of(layer, "weight")
    quant_state = getattr(weight, "quant_state", None)
    if quant_state is not None:
        return str(quant_state.quant_type)
    name = type(weight).__name__
    return "llm.int8" if name == "Int8Params" else name


def layout_of(layer: nn.Module) -> str:
    """Return what core.quantization.layer_bytes must know beside a layer's scheme and shape."""
    quant_state = getattr(parameter_of(layer, "weight"), "quant_state", None)
    if getattr(quant_state, "packing_format_for_cpu", False):
        return PACKED_FOR_CPU
    return format_of(layer)


def modules_kept_in_float32(model: nn.Module) -> set[str]:
    """Return the names of modules that the architecture keeps in float32, as transformers says."""
    names: set[str] = set()
    for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
        names.update(getattr(model, attribute, None) or ())
    return names
