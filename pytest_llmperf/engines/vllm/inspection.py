"""What vLLM really loaded, from the tensors and layers of its worker's model.

The configuration that vLLM ended up with says the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)

from pytest_llmperf.core.effective import LinearGroup, TensorGroup
from pytest_llmperf.core.trace import StepCost
from pytest_llmperf.instruments.layers import attention_flops, dtype_name, identity

PACKED = "cpu (packed)"
"""Device of a group of weights that a CPU library holds."""

FP8_CACHES = {"fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
"""vLLM's names of KV-cache dtypes that it keeps in tensors of bytes."""

K = TypeVar("K", bound=tuple[Any, ...])


@dataclass(frozen=True)
class StoredWeight:
    """A weight as it is stored.

    It may lie in a library's own layout, out of torch's sight: its size follows from its shape and
    dtype.
    """

    dtype: torch.dtype
    elements: int

    @property
    def dtype_name(self) -> str:
        """Torch's name of the dtype."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def bytes(self) -> int:
        """Bytes without the padding that a library may add."""
        return self.elements * self.dtype.itemsize

    @property
    def low(self) -> bool:
        """Whether it is stored as integers or in 8-bit floats."""
        return not self.dtype.is_floating_point or self.dtype.itemsize == 1


@dataclass(frozen=True)
class KvCache:
    """The KV cache that is allocated, for all sequences together."""

    dtype: str
    bytes: int
    blocks: int
    block_tokens: int
    layers: int

    @property
    def tokens(self) -> int:
        """Positions that fit."""
        return self.blocks * self.block_tokens

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one position in all layers."""
        return self.bytes // self.tokens


def linears(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield paths and modules of vLLM's linear layers, the output head included.

    A tied output head is one of them too.
    """
    head = getattr(model, "lm_head", None)
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LinearBase) or (module is head and path == "lm_head"):
            yield path, module


def distinct_linears(model: nn.Module) -> list[Any]:
    """Return vLLM's linear layers, each once."""
    return list({id(layer): layer for _, layer in linears(model)}.values())


def shape_of(layer: Any) -> tuple[int, int]:
    """Return outputs and inputs of this rank's part of a layer."""
    if isinstance(layer, VocabParallelEmbedding):
        return int(layer.num_embeddings_per_partition), int(layer.embedding_dim)
    outputs = getattr(layer, "output_size_per_partition", layer.output_size)
    inputs = getattr(layer, "input_size_per_partition", layer.input_size)
    return int(outputs), int(inputs)


# Weights


def library_weight(layer: Any) -> StoredWeight | None:
    """Return what oneDNN or another CPU library keeps of a layer's weight, or None.

    It is seen in the function that vLLM put in the weight's place. vLLM 0.32 packs an embedding
    too, though nothing is multiplied with it where the head is another layer.
    """
    kernel = getattr(getattr(layer, "scheme", None), "kernel", None)
    handler = getattr(kernel, "dnnl_handler", None)
    if handler is not None:
        return StoredWeight(torch.int8, handler.n * handler.k)
    call = getattr(layer, "cpu_linear", None)
    for cell in getattr(call, "__closure__", None) or ():
        weight = _enclosed_weight(cell.cell_contents, layer)
        if weight is not None:
            return weight
    return None


def _enclosed_weight(value: Any, layer: Any) -> StoredWeight | None:
    """Return the weight that a value enclosed in `cpu_linear` holds; None where it is no weight."""
    if isinstance(value, Tensor):
        return StoredWeight(value.dtype, value.numel())
    if getattr(value, "handler_tensor", None) is not None:
        return StoredWeight(layer.weight.dtype, value.n * value.k)
    return None


def stored_weight(layer: Any) -> StoredWeight:
    """Return the weight of a linear layer as it is stored.

    It is what a CPU library holds, or the layer's largest parameter.
    """
    weight = library_weight(layer)
    if weight is not None:
        return weight
    largest: Tensor = max(layer.parameters(), key=lambda tensor: tensor.nbytes)
    return StoredWeight(largest.dtype, largest.numel())


def is_low(layer: Any) -> bool:
    """Whether a layer's weight is stored as integers or in 8-bit floats."""
    return stored_weight(layer).low


def own_tensors(layer: Any) -> Iterator[Tensor]:
    """Yield weight, scales and tables of a layer, but not its bias."""
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if name != "bias":
            yield tensor


# Groups


def tensors(model: nn.Module) -> tuple[TensorGroup, ...]:
    """Return parameters and buffers, and the weights that a CPU library holds, by kind and dtype.

    What lies in memory once is counted once.
    """
    rows = [*_tensor_rows(model), *_library_rows(model)]
    return tuple(
        TensorGroup(
            kind=kind,
            dtype=dtype,
            device=device,
            tensors=n,
            elements=elements,
            bytes=size,
            quantized=low,
        )
        for (kind, dtype, device, low), n, elements, size in _totals(rows)
    )


TensorKey = tuple[str, str, str, bool]
"""Kind, dtype, device, and whether the tensor belongs to a quantized layer."""


def _tensor_rows(model: nn.Module) -> Iterator[tuple[TensorKey, int, int]]:
    """Yield key, elements and bytes of each of the model's own tensors."""
    quantized = _quantized_tensors(model)
    for kind, tensor in _distinct_tensors(model):
        weight = StoredWeight(tensor.dtype, tensor.numel())
        key = (kind, weight.dtype_name, str(tensor.device), identity(tensor) in quantized)
        yield key, weight.elements, weight.bytes


def _library_rows(model: nn.Module) -> Iterator[tuple[TensorKey, int, int]]:
    """Yield key, elements and bytes of each weight that a CPU library holds."""
    for module in model.modules():
        weight = library_weight(module)
        if weight is not None:
            key = ("parameter", weight.dtype_name, PACKED, weight.low)
            yield key, weight.elements, weight.bytes


def _quantized_tensors(model: nn.Module) -> set[tuple[object, ...]]:
    """Return the identities of the tensors of quantized layers."""
    layers = (layer for _, layer in linears(model) if is_low(layer))
    return {identity(tensor) for layer in layers for tensor in own_tensors(layer)}


def _distinct_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield "parameter" or "buffer" and the tensor, for each that is not empty, once."""
    parameters = (("parameter", tensor) for _, tensor in model.named_parameters())
    buffers = (("buffer", tensor) for _, tensor in model.named_buffers())
    known: set[tuple[object, ...]] = set()
    for kind, tensor in (*parameters, *buffers):
        if tensor.numel() and identity(tensor) not in known:
            known.add(identity(tensor))
            yield kind, tensor


def linear_groups(model: nn.Module) -> tuple[LinearGroup, ...]:
    """Return linear layers by class and storage dtype.

    vLLM joins the query, key and value layers, and gate and up.
    """
    rows = [_linear_row(layer) for _, layer in linears(model)]
    return tuple(
        LinearGroup(cls=cls, dtype=dtype, layers=n, elements=elements, bytes=size, quantized=low)
        for (cls, dtype, low), n, elements, size in _totals(rows)
    )


def _linear_row(layer: Any) -> tuple[tuple[str, str, bool], int, int]:
    """Return class, dtype and precision of a layer, its elements and its bytes."""
    weight = stored_weight(layer)
    outputs, inputs = shape_of(layer)
    key = (type(layer).__name__, weight.dtype_name, weight.low)
    return key, outputs * inputs, weight.bytes


def _totals(rows: Iterable[tuple[K, int, int]]) -> list[tuple[K, int, int, int]]:
    """Return for each key how many rows it has, and the sums of their elements and bytes."""
    totals: dict[K, list[int]] = defaultdict(lambda: [0, 0, 0])
    for key, elements, size in rows:
        total = totals[key]
        total[0] += 1
        total[1] += elements
        total[2] += size
    return [(key, n, elements, size) for key, (n, elements, size) in sorted(totals.items())]


# Configuration


def kv_cache(runner: Any, vllm_config: Any) -> KvCache:
    """Return the allocated KV cache, by its own tensors."""
    caches = [tensor for tensor in runner.kv_caches if isinstance(tensor, Tensor)]
    config = vllm_config.cache_config
    return KvCache(
        dtype=FP8_CACHES.get(str(config.cache_dtype), dtype_name(caches[0])),
        bytes=_storage_bytes(caches),
        blocks=int(config.num_gpu_blocks),
        block_tokens=int(config.block_size),
        layers=len(caches),
    )


def _storage_bytes(caches: Iterable[Tensor]) -> int:
    """Return the bytes of the storages of these tensors, each once."""
    storages = [tensor.untyped_storage() for tensor in caches]
    distinct = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(distinct.values())


def attention_backends(vllm_config: Any) -> str:
    """Return the names of the attention backends that the layers have, as vLLM calls them."""
    layers = vllm_config.compilation_config.static_forward_context.values()
    names = {
        layer.get_attn_backend().get_name()
        for layer in layers
        if hasattr(layer, "get_attn_backend")
    }
    return ", ".join(sorted(names)) or "unknown"


def compile_mode(vllm_config: Any) -> str | None:
    """Say how the model is compiled and which CUDA graphs are recorded; None where it is eager."""
    config = vllm_config.compilation_config
    mode = _mode_name(config.mode)
    graphs = _mode_name(config.cudagraph_mode) if torch.cuda.is_available() else ""
    parts = [mode] if mode else []
    parts += [f"CUDA graphs {graphs}"] if graphs else []
    return ", ".join(parts) or None


def _mode_name(mode: Any) -> str:
    """Return the name of one of vLLM's modes; empty for none."""
    name = str(getattr(mode, "name", mode))
    return "" if name in ("NONE", "None") else name


# Cost


def step_cost(model: Any, config: Any, cache: KvCache, batch: int, compute_dtype: str) -> StepCost:
    """Return what one decode step of `batch` sequences must read and compute on this rank."""
    return StepCost(
        weight_bytes_read=bytes_read(model, batch),
        kv_bytes_per_token=cache.bytes_per_token,
        flops_per_token=2.0 * sum(group.elements for group in linear_groups(model)),
        attention_flops_per_token_per_position=attention_flops(config, cache.layers),
        compute_dtype=compute_dtype,
    )


def bytes_read(model: nn.Module, batch: int) -> int:
    """Return the bytes of all weights once, where they are multiplied from.

    Of an embedding that is looked up, `batch` rows are read.
    """
    layers = distinct_linears(model)
    multiplied = {identity(tensor) for layer in layers for tensor in _multiplied_tensors(layer)}
    tables = _tables(model)
    counted = multiplied | {identity(table.weight) for table in tables}
    rest = sum(t.nbytes for t in model.parameters() if t.numel() and identity(t) not in counted)
    looked_up = _looked_up_bytes(tables, batch, multiplied)
    return sum(map(_multiplied_bytes, layers)) + looked_up + rest


def _multiplied_bytes(layer: Any) -> int:
    """Return the bytes that a linear layer multiplies from."""
    weight = library_weight(layer)
    library_bytes = weight.bytes if weight is not None else 0
    return library_bytes + sum(tensor.nbytes for tensor in _multiplied_tensors(layer))


def _multiplied_tensors(layer: Any) -> list[Tensor]:
    """Return the tensors of a linear layer that are multiplied.

    The own tensor of an embedding that a library has packed is for looking up.
    """
    if isinstance(layer, VocabParallelEmbedding) and library_weight(layer) is not None:
        return []
    return list(layer.parameters())


def _tables(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]


def _looked_up_bytes(tables: Iterable[Any], batch: int, multiplied: set[tuple[object, ...]]) -> int:
    """Return the bytes of `batch` rows of each table that is not multiplied with, once."""
    counted = set(multiplied)
    total = 0
    for table in tables:
        weight = table.weight
        if identity(weight) not in counted and not isinstance(table, ParallelLMHead):
            total += min(batch, weight.shape[0]) * weight.nbytes // weight.shape[0]
        counted.add(identity(weight))
    return total
