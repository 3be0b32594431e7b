"""What one decode step must read and compute, from the tensors and layers that are really there."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pytest_llmperf.core.trace import StepCost
from pytest_llmperf.engines.outputs.decoding import CacheSeen
from pytest_llmperf.engines.transformers.effective import linear_groups, parameter_tensors
from pytest_llmperf.engines.transformers.quantize.storage import inner_tensors
from pytest_llmperf.instruments.layers import attention_flops


def step_cost(model: Any, cache: CacheSeen, batch: int, compute_dtype: str) -> StepCost:
    """The cost of one decode step of `batch` sequences, with the KV cache as it was seen after a run."""
    return StepCost(
        weight_bytes_read=weight_bytes_read(model, batch),
        kv_bytes_per_token=cache.bytes_per_position,
        flops_per_token=2.0 * linear_elements(model),
        attention_flops_per_token_per_position=attention_flops(
            model.config.get_text_config(), cache.layers
        ),
        compute_dtype=compute_dtype,
    )


def weight_bytes_read(model: Any, batch: int) -> int:
    """All parameters once, but of a table that is only looked up (an untied embedding) one row a sequence.

    Quantized layers count by what they store: packed weights, scales, zero points and tables.
    """
    total = sum(tensor.nbytes for tensor in parameter_tensors(model))
    for table in _lookup_tables(model):
        rows = min(batch, table.shape[0])
        total -= storage_bytes(table) - rows * storage_bytes(table) // table.shape[0]
    return total


def linear_elements(model: Any) -> int:
    """Logical weights of all linear layers, the output head included."""
    return sum(group.elements for group in linear_groups(model))


def storage_bytes(tensor: Tensor) -> int:
    """Bytes a tensor occupies. A tensor subclass (quantized weights) counts by its inner tensors."""
    return sum(inner.nbytes for inner in inner_tensors(tensor))


def _lookup_tables(model: Any) -> list[Tensor]:
    head = model.get_output_embeddings()
    read_whole = {head.weight.data_ptr()} if head is not None else set()
    tables = {m.weight.data_ptr(): m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    return [weight for pointer, weight in tables.items() if pointer not in read_whole]
