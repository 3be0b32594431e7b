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

from pytest_llmperf.engines.transformers.prune.blocks import Block

Backend = type[SparseSemiStructuredTensor]

_CUTLASS_MAJOR = 8
"""torch's own CUTLASS kernels are for compute capability 8.x; later devices need cuSPARSELt."""


def backend(device: torch.device) -> Backend | str:
    """What multiplies 2:4 weights on `device`, or why nothing does."""
    if device.type != "cuda":
        return f"{device.type} has no sparse tensor cores"
    capability = torch.cuda.get_device_capability(device)
    if capability[0] < _CUTLASS_MAJOR:
        return f"sparse tensor cores need CUDA compute capability 8.0, this device has {capability[0]}.{capability[1]}"
    if torch.backends.cusparselt.is_available():
        return SparseSemiStructuredTensorCUSPARSELT
    if capability[0] == _CUTLASS_MAJOR:
        return SparseSemiStructuredTensorCUTLASS
    return f"this torch has no cuSPARSELt, and its CUTLASS kernels are not for compute capability {capability[0]}.{capability[1]}"


def compress(blocks: list[Block], kind: Backend) -> tuple[int, tuple[str, ...]]:
    """Store the 2:4 weights of nn.Linear layers as `kind`, in place.

    Returns how many, and the names of those it cannot take.
    """
    done, refused = 0, []
    for block in blocks:
        for name, layer in block.linears.items():
            if takes(kind, layer):
                with warnings.catch_warnings():
                    warnings.filterwarnings(
                        "ignore", message=".*SparseSemiStructuredTensor is in prototype stage"
                    )
                    sparse = kind.from_dense(layer.weight.data)  # type: ignore[arg-type]
                    layer.weight = nn.Parameter(sparse, requires_grad=False)
                done += 1
            else:
                refused.append(name)
    return done, tuple(refused)


def takes(kind: Backend, layer: nn.Module) -> bool:
    """Whether the layer multiplies through torch's linear, and its dtype and shape are among those of the kernels."""
    if type(layer).forward is not nn.Linear.forward:
        return False
    weight: Any = layer.weight
    # The only place where torch says them.
    shapes = kind._DTYPE_SHAPE_CONSTRAINTS.get(weight.dtype)  # noqa: SLF001
    if shapes is None or not weight.is_contiguous():
        return False
    rows, columns = weight.shape
    return bool(rows % shapes.sparse_min_rows == 0 and columns % shapes.sparse_min_cols == 0)
