"""2:4 weights in the form that sparse tensor cores multiply, on CUDA devices that have them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
)

from pytest_llmperf.engines.transformers.prune.blocks import Block, linears

Backend = type[SparseSemiStructuredTensor]

_CUTLASS_MAJOR = 8
"""torch's own CUTLASS kernels are for compute capability 8.x; later devices need cuSPARSELt."""


def backend(device: torch.device) -> Backend | str:
    """Return what multiplies 2:4 weights on `device`, or why nothing does."""
    if device.type != "cuda":
        return f"{device.type} has no sparse tensor cores"
    major, minor = torch.cuda.get_device_capability(device)
    if major < _CUTLASS_MAJOR:
        return (
            f"sparse tensor cores need CUDA compute capability 8.0, this device has {major}.{minor}"
        )
    if torch.backends.cusparselt.is_available():
        return SparseSemiStructuredTensorCUSPARSELT
    if major == _CUTLASS_MAJOR:
        return SparseSemiStructuredTensorCUTLASS
    return (
        "this torch has no cuSPARSELt, and its CUTLASS kernels are not for "
        f"compute capability {major}.{minor}"
    )


def compress(blocks: list[Block], kind: Backend) -> tuple[int, tuple[str, ...]]:
    """Store the 2:4 weights of nn.Linear layers as `kind`, in place.

    Returns how many layers are compressed, and the names of those that stay dense.
    """
    layers = linears(blocks)
    dense: list[str] = []
    for name, layer in layers.items():
        if takes(kind, layer):
            _compress_layer(layer, kind)
        else:
            dense.append(name)
    return len(layers) - len(dense), tuple(dense)


def _compress_layer(layer: Any, kind: Backend) -> None:
    with warnings.catch_warnings():
        prototype = ".*SparseSemiStructuredTensor is in prototype stage"
        warnings.filterwarnings("ignore", message=prototype)
        sparse: Any = kind.from_dense(layer.weight.data)
        layer.weight = nn.Parameter(sparse, requires_grad=False)


def takes(kind: Backend, layer: nn.Module) -> bool:
    """Whether the kernels take the layer.

    It must multiply through torch's linear, and its dtype and shape must be among the kernels'.
    """
    if type(layer).forward is not nn.Linear.forward:
        return False
    weight: Any = layer.weight
    # torch states the shapes in no public place.
    shapes = kind._DTYPE_SHAPE_CONSTRAINTS.get(weight.dtype)  # noqa: SLF001
    return shapes is not None and weight.is_contiguous() and _divides(weight, shapes)


def _divides(weight: Any, shapes: Any) -> bool:
    """Whether [rows, columns] are multiples of the smallest shape that the kernels take."""
    rows, columns = weight.shape
    return bool(rows % shapes.sparse_min_rows == 0 and columns % shapes.sparse_min_cols == 0)
