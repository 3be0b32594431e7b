"""The tensors of a model by kind, dtype and device, and its linear layers by class."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch
from msgspec import structs
from torch import nn

from pytest_llmperf.core.effective import LinearGroup, TensorGroup
from pytest_llmperf.engines.transformers.observed.holdings import (
    PARAMETER,
    REST,
    Occupied,
    distinct_spans,
    held_tensors,
    occupied,
)
from pytest_llmperf.engines.transformers.quantize.storage import (
    is_linear,
    is_quantized,
    logical_weights,
    modules_kept_in_float32,
    stored_tensors,
    weight_tensors,
)
from pytest_llmperf.instruments.layers import dtype_name, identity


class _TensorKind(NamedTuple):
    """What the tensors of one TensorGroup share."""

    kind: str
    dtype: str
    device: str
    declared_float32: bool
    quantized: bool


def tensor_groups(model: nn.Module) -> tuple[TensorGroup, ...]:
    """Return all tensors of a model by kind, dtype and device; their bytes are those in memory.

    What lies in memory once (tied weights, views) is counted once.
    """
    quantized = _quantized_identities(model)
    groups: dict[_TensorKind, list[Occupied]] = defaultdict(list)
    for part in occupied(held_tensors(model)):
        groups[_tensor_kind(model, part, quantized)].append(part)
    return tuple(_tensor_group(kind, groups[kind]) for kind in sorted(groups))


def _tensor_kind(model: nn.Module, part: Occupied, quantized: set[object]) -> _TensorKind:
    held = part.held
    dtype = dtype_name(held.tensor)
    is_declared = dtype == "float32" and is_declared_float32(model, held.path)
    is_quantized = held.kind != REST and identity(held.tensor) in quantized
    return _TensorKind(held.kind, dtype, str(held.tensor.device), is_declared, is_quantized)


def is_declared_float32(model: nn.Module, path: str) -> bool:
    """Whether the architecture says that it keeps the module of a path in float32."""
    return not modules_kept_in_float32(model).isdisjoint(path.split("."))


def _quantized_identities(model: nn.Module) -> set[object]:
    layers = quantized_linears(model)
    return {identity(tensor) for layer in layers for tensor in weight_tensors(layer)}


def _tensor_group(kind: _TensorKind, parts: list[Occupied]) -> TensorGroup:
    tensors = [] if kind.kind == REST else [part.held.tensor for part in parts]
    return TensorGroup(
        kind=kind.kind,
        dtype=kind.dtype,
        device=kind.device,
        tensors=len(tensors),
        elements=sum(_elements(part) for part in parts if kind.kind != REST),
        bytes=sum(part.n_bytes for part in parts),
        fixed_dtype=kind.declared_float32,
        quantized=kind.quantized,
        example=parts[0].held.path,
    )


def _elements(part: Occupied) -> int:
    """Return a tensor's elements in memory. One on the meta device has them elsewhere."""
    tensor = part.held.tensor
    return tensor.numel() if tensor.is_meta else part.n_bytes // tensor.element_size()


def parameter_tensors(model: nn.Module) -> list[torch.Tensor]:
    """Return the plain tensors that hold the parameters, each byte in memory once.

    What quantized and packed linear layers hold beside their parameters is included.
    """
    parameters = [held.tensor for held in held_tensors(model) if held.kind == PARAMETER]
    packed = [tensor for layer in quantized_linears(model) for tensor in stored_tensors(layer)]
    return distinct_spans([*parameters, *packed])


def assistant_tensors(model: nn.Module) -> tuple[TensorGroup, ...]:
    """Return the tensors of the model that proposes tokens.

    They are on the device, but they are no parameters of the measured model.
    """
    return tuple(
        structs.replace(group, kind=f"assistant's {group.kind}") for group in tensor_groups(model)
    )


class _LinearKind(NamedTuple):
    """What the layers of one LinearGroup share; its fields are some of the group's."""

    cls: str
    dtype: str
    quantized: bool


class _LinearSize(NamedTuple):
    """The logical weights of one layer, and the bytes they occupy."""

    elements: int
    bytes: int


def linear_groups(model: nn.Module) -> tuple[LinearGroup, ...]:
    """Return linear layers by class and storage dtype.

    They are nn.Linear and its subclasses, Conv1D, and whatever replaced them.
    """
    groups: dict[_LinearKind, list[_LinearSize]] = defaultdict(list)
    for layer in filter(is_linear, model.modules()):
        tensors = stored_tensors(layer)
        size = _LinearSize(logical_weights(layer), sum(tensor.nbytes for tensor in tensors))
        groups[_linear_kind(layer, tensors)].append(size)
    return tuple(_linear_group(kind, groups[kind]) for kind in sorted(groups))


def _linear_kind(layer: nn.Module, tensors: list[torch.Tensor]) -> _LinearKind:
    return _LinearKind(type(layer).__name__, _largest_dtype(tensors), is_quantized(layer))


def _largest_dtype(tensors: list[torch.Tensor]) -> str:
    """Return the dtype of the tensor with most bytes."""
    largest = max(tensors, key=lambda tensor: tensor.nbytes, default=None)
    return dtype_name(largest) if largest is not None else "unknown"


def _linear_group(kind: _LinearKind, sizes: list[_LinearSize]) -> LinearGroup:
    return LinearGroup(
        layers=len(sizes),
        elements=sum(size.elements for size in sizes),
        bytes=sum(size.bytes for size in sizes),
        **kind._asdict(),
    )


def quantized_linears(model: nn.Module) -> list[nn.Module]:
    """Return the linear layers whose weights are integers or 8-bit floats."""
    return [module for module in model.modules() if is_linear(module) and is_quantized(module)]
