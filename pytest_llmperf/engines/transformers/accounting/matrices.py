"""The matrices of a model that are no linear layers: fused experts, routers, convolutions.

Matrices that no parameter holds (buffers, tensors in lists) are among them where they are used.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import torch
from torch import nn

from pytest_llmperf.core.effective import OtherMatrices
from pytest_llmperf.engines.transformers.observed.groups import is_declared_float32
from pytest_llmperf.engines.transformers.observed.holdings import (
    BUFFER,
    PARAMETER,
    Held,
    held_tensors,
    occupied,
    storage_key,
)
from pytest_llmperf.engines.transformers.quantize.storage import (
    is_linear,
    logical_weights,
    stored_tensors,
)
from pytest_llmperf.instruments.layers import dtype_name

_MATRIX_DIMENSIONS = 2


class _Kind(NamedTuple):
    name: str
    dtype: str
    holder: str
    fixed_dtype: bool


class _Matrix(NamedTuple):
    path: str
    tensor: torch.Tensor
    n_bytes: int


def other_matrices(
    model: nn.Module, multiplied: AbstractSet[tuple[str, int]] = frozenset()
) -> tuple[OtherMatrices, ...]:
    """Return the matrices that are neither linear layers nor embeddings, each once.

    They are the parameters of two dimensions and more, and what else lies in the storages
    `multiplied`, which were seen in products. They are grouped by module class, name and dtype.
    Each group's share is of the elements of all matrices, its own and those of the linear layers.
    """
    groups: dict[_Kind, list[_Matrix]] = defaultdict(list)
    for kind, matrix in (*_of_parameters(model), *_elsewhere(model, multiplied)):
        groups[kind].append(matrix)
    elements = {kind: _elements(group) for kind, group in groups.items()}
    total = sum(elements.values()) + _linear_elements(model)
    return tuple(
        OtherMatrices(
            cls=kind.name,
            dtype=kind.dtype,
            tensors=len(group),
            elements=elements[kind],
            bytes=sum(matrix.n_bytes for matrix in group),
            share=elements[kind] / total,
            example=group[0].path,
            holder=kind.holder,
            fixed_dtype=kind.fixed_dtype,
        )
        for kind, group in groups.items()
    )


def _of_parameters(model: nn.Module) -> Iterator[tuple[_Kind, _Matrix]]:
    """Yield each such parameter once, but those that linear layers have views of."""
    of_linear = _storages_of_linear_layers(model)
    seen: set[int] = set()
    for path, module in model.named_modules():
        if is_linear(module) or isinstance(module, nn.Embedding) or _is_of_adapter(path, module):
            continue
        for name, tensor in module.named_parameters(recurse=False):
            is_new = id(tensor) not in seen and storage_key(tensor) not in of_linear
            if is_new and _is_plain_matrix(tensor):
                seen.add(id(tensor))
                held = Held(kind=PARAMETER, path=f"{path}.{name}", owner=module, tensor=tensor)
                yield _kind(model, held), _Matrix(held.path, tensor, tensor.nbytes)


def _storages_of_linear_layers(model: nn.Module) -> set[tuple[str, int]]:
    layers = filter(is_linear, model.modules())
    return {storage_key(tensor) for layer in layers for tensor in stored_tensors(layer)}


def _elsewhere(
    model: nn.Module, multiplied: AbstractSet[tuple[str, int]]
) -> Iterator[tuple[_Kind, _Matrix]]:
    """Yield the matrices that were multiplied with and that no parameter or linear layer holds."""
    for part in occupied(held_tensors(model)) if multiplied else ():
        held = part.held
        is_of_linear = held.kind == BUFFER and is_linear(held.owner)
        if held.kind == PARAMETER or is_of_linear or not part.n_bytes:
            continue
        if held.tensor.dim() >= _MATRIX_DIMENSIONS and storage_key(held.tensor) in multiplied:
            yield _kind(model, held), _Matrix(held.path, held.tensor, part.n_bytes)


def _kind(model: nn.Module, held: Held) -> _Kind:
    name = f"{type(held.owner).__name__}.{_name_in(held)}"
    dtype = dtype_name(held.tensor)
    declared = dtype == "float32" and is_declared_float32(model, held.path)
    return _Kind(name, dtype, held.kind, declared)


def _name_in(held: Held) -> str:
    """Return the name of a tensor in its module: the last part of its path, without an index."""
    return re.split(r"\W", held.path.rpartition(".")[2], maxsplit=1)[0]


def _elements(matrices: list[_Matrix]) -> int:
    return sum(matrix.n_bytes // matrix.tensor.element_size() for matrix in matrices)


def _is_of_adapter(path: str, module: nn.Module) -> bool:
    return ".lora_" in f".{path}" or bool(getattr(module, "belongs_to_adapter", False))


def _is_plain_matrix(tensor: torch.Tensor) -> bool:
    """Whether it is a matrix, or a stack of matrices, in a dtype of 16 bits or more."""
    is_matrix = tensor.dim() >= _MATRIX_DIMENSIONS
    return is_matrix and tensor.is_floating_point() and tensor.element_size() > 1


def _linear_elements(model: nn.Module) -> int:
    return sum(logical_weights(module) for module in model.modules() if is_linear(module))
