"""What one decode step must read and compute, from the tensors and layers that a model holds."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from pytest_llmperf.core.trace import StepCost
from pytest_llmperf.engines.outputs.decoding import CacheSeen
from pytest_llmperf.engines.transformers.accounting.experts import (
    Experts,
    experts_of,
    router_elements,
)
from pytest_llmperf.engines.transformers.effective import linear_groups, parameter_tensors
from pytest_llmperf.engines.transformers.quantize.storage import inner_tensors, logical_weights
from pytest_llmperf.instruments.layers import attention_flops


def step_cost(model: Any, cache: CacheSeen, batch: int, compute_dtype: str) -> StepCost:
    """Return the cost of one decode step of `batch` sequences, with the KV cache of a run."""
    return StepCost(
        weight_bytes_read=weight_bytes_read(model, batch),
        kv_bytes_per_token=cache.bytes_per_position,
        flops_per_token=2.0 * active_elements(model),
        head_flops=2.0 * _head_elements(model),
        attention_flops_per_token_per_position=attention_flops(
            model.config.get_text_config(), cache.layers
        ),
        compute_dtype=compute_dtype,
    )


def weight_bytes_read(model: Any, batch: int) -> int:
    """Return the bytes of all parameters, each read once.

    Of a table that is only looked up (an untied embedding) each sequence reads one row.
    Of the experts of a mixture those are read that the batch's tokens are expected to choose.
    Quantized layers count by what they store: packed weights, scales, zero points and tables.
    """
    total = sum(tensor.nbytes for tensor in parameter_tensors(model))
    idle = sum(_idle_bytes(experts, batch) for experts in experts_of(model))
    return total - idle - sum(_bytes_not_read(table, batch) for table in _lookup_tables(model))


def _idle_bytes(experts: Experts, batch: int) -> int:
    """Return the bytes of the experts that no token of the batch is expected to choose."""
    return round(experts.bytes * (1 - experts.read_share(batch)))


def _bytes_not_read(table: Tensor, batch: int) -> int:
    """Return the bytes of the rows of a table [rows, width] that no sequence looks up."""
    size, rows = storage_bytes(table), len(table)
    return size - min(batch, rows) * size // rows


def linear_elements(model: Any) -> int:
    """Return the logical weights of all linear layers, the output head included."""
    return sum(group.elements for group in linear_groups(model))


def active_elements(model: Any) -> float:
    """Return the weights that one token is multiplied with: linear layers, routers, its experts."""
    experts = experts_of(model)
    idle = sum(one.elements * (1 - one.active_share) for one in experts if one.are_linear)
    fused = sum(one.elements * one.active_share for one in experts if not one.are_linear)
    return linear_elements(model) - idle + fused + router_elements(model)


def _head_elements(model: Any) -> int:
    """Return the weights of the output head, where a prompt needs it at one position only."""
    head = model.get_output_embeddings()
    if head is None or "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return 0
    return logical_weights(head)


def storage_bytes(tensor: Tensor) -> int:
    """Return the bytes that a tensor occupies.

    A tensor subclass (quantized weights) counts by its inner tensors.
    """
    return sum(inner.nbytes for inner in inner_tensors(tensor))


def _lookup_tables(model: Any) -> list[Tensor]:
    """Return the weights of embeddings that are not the output head's, which is read in full."""
    tables = _tables_by_address(model)
    head = model.get_output_embeddings()
    if head is not None:
        tables.pop(_address(head.weight), None)
    return list(tables.values())


def _tables_by_address(model: Any) -> dict[int, Tensor]:
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Embedding)]
    return {_address(weight): weight for weight in weights}


def _address(weight: Tensor) -> int:
    """Return where the storage of a weight begins, or that of a wrapper's first inner tensor."""
    return next(inner_tensors(weight)).data_ptr()
