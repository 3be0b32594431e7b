"""The matrices of a model that are no linear layers: fused experts, routers, convolutions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from pytest_llmperf.core.effective import OtherMatrices
from pytest_llmperf.engines.transformers.quantize.storage import is_linear, logical_weights
from pytest_llmperf.instruments.layers import dtype_name

_MATRIX_DIMENSIONS = 2


class _Kind(NamedTuple):
    name: str
    dtype: str


def other_matrices(model: nn.Module) -> tuple[OtherMatrices, ...]:
    """Return parameters of two dimensions and more that are neither linear layers nor embeddings.

    They are grouped by module class, name and dtype. Each group's share is of the elements of all
    matrices, its own and those of the linear layers.
    """
    tensors: dict[_Kind, list[torch.Tensor]] = defaultdict(list)
    examples: dict[_Kind, str] = {}
    for path, kind, tensor in _found(model):
        tensors[kind].append(tensor)
        examples.setdefault(kind, path)
    elements = {kind: sum(t.numel() for t in group) for kind, group in tensors.items()}
    total = sum(elements.values()) + _linear_elements(model)
    return tuple(
        OtherMatrices(
            cls=kind.name,
            dtype=kind.dtype,
            tensors=len(group),
            elements=elements[kind],
            bytes=sum(tensor.nbytes for tensor in group),
            share=elements[kind] / total,
            example=examples[kind],
        )
        for kind, group in tensors.items()
    )


def _found(model: nn.Module) -> Iterator[tuple[str, _Kind, torch.Tensor]]:
    """Yield each such parameter once, with its path."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        if is_linear(module) or isinstance(module, nn.Embedding) or _is_of_adapter(path, module):
            continue
        for name, tensor in module.named_parameters(recurse=False):
            if _is_plain_matrix(tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                kind = _Kind(f"{type(module).__name__}.{name}", dtype_name(tensor))
                yield f"{path}.{name}", kind, tensor


def _is_of_adapter(path: str, module: nn.Module) -> bool:
    return ".lora_" in f".{path}" or bool(getattr(module, "belongs_to_adapter", False))


def _is_plain_matrix(tensor: torch.Tensor) -> bool:
    """Whether it is a matrix, or a stack of matrices, in a dtype of 16 bits or more."""
    is_matrix = tensor.dim() >= _MATRIX_DIMENSIONS
    return is_matrix and tensor.is_floating_point() and tensor.element_size() > 1


def _linear_elements(model: nn.Module) -> int:
    return sum(logical_weights(module) for module in model.modules() if is_linear(module))
