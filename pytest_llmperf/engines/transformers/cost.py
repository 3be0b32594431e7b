"""What one decode step must read and compute, from the tensors and layers that are really there."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pytest_llmperf.core.trace import StepCost
from pytest_llmperf.engines.transformers.effective import linear_groups, parameter_tensors
from pytest_llmperf.engines.transformers.kv_cache import CacheSeen
from pytest_llmperf.engines.transformers.quantise.storage import inner_tensors


def step_cost(model: Any, cache: CacheSeen, batch: int, compute_dtype: str) -> StepCost:
    """The cost of one decode step of `batch` sequences, with the KV cache as it was seen after a run."""
    return StepCost(
        weight_bytes_read=weight_bytes_read(model, batch),
        kv_bytes_per_token=cache.bytes_per_position,
        flops_per_token=2.0 * linear_elements(model),
        attention_flops_per_token_per_position=attention_flops(model.config.get_text_config(), cache.layers),
        compute_dtype=compute_dtype,
    )


def weight_bytes_read(model: Any, batch: int) -> int:
    """All parameters once, but of a table that is only looked up (an untied embedding) one row a sequence.

    Quantised layers count by what they store: packed weights, scales, zero points and tables.
    """
    total = sum(tensor.nbytes for tensor in parameter_tensors(model))
    for table in _lookup_tables(model):
        rows = min(batch, table.shape[0])
        total -= storage_bytes(table) - rows * storage_bytes(table) // table.shape[0]
    return total


def linear_elements(model: Any) -> int:
    """Logical weights of all linear layers, the output head included."""
    return sum(group.elements for group in linear_groups(model))


def attention_flops(config: Any, layers: int) -> float:
    """FLOPs for each token and each position attended: 2 for the score and 2 for the weighted sum, a head dimension."""
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 4.0 * heads * head_dim * layers


def storage_bytes(tensor: Tensor) -> int:
    """Bytes a tensor occupies. A tensor subclass (quantised weights) counts by its inner tensors."""
    return sum(inner.nbytes for inner in inner_tensors(tensor))


def _lookup_tables(model: Any) -> list[Tensor]:
    head = model.get_output_embeddings()
    read_whole = {head.weight.data_ptr()} if head is not None else set()
    tables = {m.weight.data_ptr(): m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    return [weight for pointer, weight in tables.items() if pointer not in read_whole]
