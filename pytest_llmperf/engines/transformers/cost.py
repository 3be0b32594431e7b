"""What one decode step must read and compute, from the tensors and layers that a model holds."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pytest_llmperf.core.trace import StepCost
from pytest_llmperf.engines.outputs.decoding import CacheSeen
from pytest_llmperf.engines.transformers.effective import linear_groups, parameter_tensors
from pytest_llmperf.engines.transformers.quantize.storage import inner_tensors
from pytest_llmperf.instruments.layers import attention_flops


def step_cost(model: Any, cache: CacheSeen, batch: int, compute_dtype: str) -> StepCost:
    """Return the cost of one decode step of `batch` sequences, with the KV cache of a run."""
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
    """Return the bytes of all parameters, each read once.

    Of a table that is only looked up (an untied embedding) each sequence reads one row.
    Quantized layers count by what they store: packed weights, scales, zero points and tables.
    """
    total = sum(tensor.nbytes for tensor in parameter_tensors(model))
    return total - sum(_bytes_not_read(table, batch) for table in _lookup_tables(model))


def _bytes_not_read(table: Tensor, batch: int) -> int:
    """Return the bytes of the rows of a table [rows, width] that no sequence looks up."""
    size, rows = storage_bytes(table), len(table)
    return size - min(batch, rows) * size // rows


def linear_elements(model: Any) -> int:
    """Return the logical weights of all linear layers, the output head included."""
    return sum(group.elements for group in linear_groups(model))


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
