"""What vLLM really loaded, from the tensors and layers of its worker's model and from the configuration it ended up with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Held:
    """A weight that lies in a library's own layout, out of torch's sight: its size follows from its shape and dtype."""

    dtype: torch.dtype
    elements: int

    @property
    def bytes(self) -> int:
        """Without the padding that the library may add."""
        return self.elements * self.dtype.itemsize

    @property
    def low(self) -> bool:
        """Stored as integers or in 8-bit floats."""
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
    """Paths and modules of vLLM's linear layers, the output head included, and a tied one too."""
    head = getattr(model, "lm_head", None)
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LinearBase) or (module is head and path == "lm_head"):
            yield path, module


def shape_of(layer: Any) -> tuple[int, int]:
    """Outputs and inputs of this rank's part of a layer."""
    if isinstance(layer, VocabParallelEmbedding):
        return int(layer.num_embeddings_per_partition), int(layer.embedding_dim)
    outputs = getattr(layer, "output_size_per_partition", layer.output_size)
    inputs = getattr(layer, "input_size_per_partition", layer.input_size)
    return int(outputs), int(inputs)


def held_aside(layer: Any) -> Held | None:
    """What oneDNN or another CPU library keeps of a layer's weight: seen in the function that vLLM put in its place.

    vLLM 0.32 packs an embedding too, though nothing is multiplied with it where the head is another layer.
    """
    handler = getattr(getattr(getattr(layer, "scheme", None), "kernel", None), "dnnl_handler", None)
    if handler is not None:
        return Held(torch.int8, handler.n * handler.k)
    call = getattr(layer, "cpu_linear", None)
    for cell in getattr(call, "__closure__", None) or ():
        value = cell.cell_contents
        if isinstance(value, Tensor):
            return Held(value.dtype, value.numel())
        if getattr(value, "handler_tensor", None) is not None:
            return Held(layer.weight.dtype, value.n * value.k)
    return None


def tensors(model: nn.Module) -> tuple[TensorGroup, ...]:
    """Parameters and buffers, and the weights that a CPU library holds.

    What lies in memory once is counted once.
    """
    totals: dict[tuple[str, str, str, bool], list[int]] = defaultdict(lambda: [0, 0, 0])

    def add(kind: str, device: str, held: Held, *, low: bool) -> None:
        for i, amount in enumerate((1, held.elements, held.bytes)):
            totals[kind, str(held.dtype).removeprefix("torch."), device, low][i] += amount

    layers = [layer for _, layer in linears(model)]
    quantized = {identity(t) for layer in layers if is_low(layer) for t in own_tensors(layer)}
    seen: set[tuple[object, ...]] = set()
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for _, tensor in named:
            if tensor.numel() and identity(tensor) not in seen:
                seen.add(identity(tensor))
                add(
                    kind,
                    str(tensor.device),
                    Held(tensor.dtype, tensor.numel()),
                    low=identity(tensor) in quantized,
                )
    for module in model.modules():
        aside = held_aside(module)
        if aside is not None:
            add("parameter", PACKED, aside, low=aside.low)
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
        for (kind, dtype, device, low), (n, elements, size) in sorted(totals.items())
    )


def is_low(layer: Any) -> bool:
    """Its weight is stored as integers or in 8-bit floats."""
    return stored_weight(layer).low


def own_tensors(layer: Any) -> Iterator[Tensor]:
    """Weight, scales and tables of a layer; the bias is not in it."""
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if name != "bias":
            yield tensor


def linear_groups(model: nn.Module) -> tuple[LinearGroup, ...]:
    """Linear layers by class and storage dtype.

    vLLM joins the query, key and value layers, and gate and up.
    """
    totals: dict[tuple[str, str, bool], list[int]] = defaultdict(lambda: [0, 0, 0])
    for _, layer in linears(model):
        stored = stored_weight(layer)
        outputs, inputs = shape_of(layer)
        total = totals[
            type(layer).__name__, str(stored.dtype).removeprefix("torch."), is_low(layer)
        ]
        for i, amount in enumerate((1, outputs * inputs, stored.bytes)):
            total[i] += amount
    return tuple(
        LinearGroup(cls=cls, dtype=dtype, layers=n, elements=elements, bytes=size, quantized=low)
        for (cls, dtype, low), (n, elements, size) in sorted(totals.items())
    )


def stored_weight(layer: Any) -> Held:
    """The weight of a linear layer as it is stored: what a CPU library holds, or the layer's largest parameter."""
    held = held_aside(layer)
    if held is not None:
        return held
    largest: Tensor = max(layer.parameters(), key=lambda tensor: tensor.nbytes)
    return Held(largest.dtype, largest.numel())


def kv_cache(runner: Any, vllm_config: Any) -> KvCache:
    """The allocated KV cache, by its own tensors."""
    caches = [tensor for tensor in runner.kv_caches if isinstance(tensor, Tensor)]
    distinct = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in caches
    }
    config = vllm_config.cache_config
    asked = str(config.cache_dtype)
    return KvCache(
        dtype=FP8_CACHES.get(asked, dtype_name(caches[0])),
        bytes=sum(distinct.values()),
        blocks=int(config.num_gpu_blocks),
        block_tokens=int(config.block_size),
        layers=len(caches),
    )


def attention_backends(vllm_config: Any) -> str:
    """Names of the attention backends that the layers have, as vLLM calls them."""
    layers = vllm_config.compilation_config.static_forward_context.values()
    names = {
        layer.get_attn_backend().get_name()
        for layer in layers
        if hasattr(layer, "get_attn_backend")
    }
    return ", ".join(sorted(names)) or "unknown"


def compile_mode(vllm_config: Any) -> str | None:
    """How the model is compiled and which CUDA graphs are recorded; None where it is eager."""
    config = vllm_config.compilation_config
    mode = getattr(config.mode, "name", str(config.mode))
    graphs = getattr(config.cudagraph_mode, "name", str(config.cudagraph_mode))
    parts = [mode] if mode not in ("NONE", "None") else []
    parts += (
        [f"CUDA graphs {graphs}"]
        if graphs not in ("NONE", "None") and torch.cuda.is_available()
        else []
    )
    return ", ".join(parts) or None


def step_cost(model: Any, config: Any, cache: KvCache, batch: int, compute_dtype: str) -> StepCost:
    """What one decode step of `batch` sequences must read and compute on this rank."""
    return StepCost(
        weight_bytes_read=bytes_read(model, batch),
        kv_bytes_per_token=cache.bytes_per_token,
        flops_per_token=2.0 * sum(group.elements for group in linear_groups(model)),
        attention_flops_per_token_per_position=attention_flops(config, cache.layers),
        compute_dtype=compute_dtype,
    )


def bytes_read(model: nn.Module, batch: int) -> int:
    """All weights once, where they are multiplied from.

    Of an embedding that is looked up `batch` rows.
    """
    layers = {id(layer): layer for _, layer in linears(model)}
    total = 0
    counted: set[tuple[object, ...]] = set()
    for layer in layers.values():
        aside = held_aside(layer)
        # Its own tensor is for looking up.
        copied = aside is not None and isinstance(layer, VocabParallelEmbedding)
        total += (aside.bytes if aside is not None else 0) + (
            0 if copied else sum(t.nbytes for t in layer.parameters())
        )
        if not copied:
            counted.update(identity(t) for t in layer.parameters())
    tables = (module for module in model.modules() if isinstance(module, VocabParallelEmbedding))
    for table in tables:
        weight: Any = table.weight
        if identity(weight) not in counted and not isinstance(table, ParallelLMHead):
            total += min(batch, weight.shape[0]) * weight.nbytes // weight.shape[0]
        counted.add(identity(weight))
    return total + sum(
        t.nbytes for t in model.parameters() if t.numel() and identity(t) not in counted
    )
