"""What one decode step must read and compute, from the tensors and layers that a model holds.

Modules count as often as one token goes through them; decisions/0030 says what is counted.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import chain
from typing import Any

from msgspec.structs import replace
from torch import Tensor, nn

from pytest_llmperf.core.trace import StepCost
from pytest_llmperf.engines.outputs.decoding import CacheSeen
from pytest_llmperf.engines.transformers.accounting.attention import Attention, attention_of
from pytest_llmperf.engines.transformers.accounting.experts import Experts, experts_of
from pytest_llmperf.engines.transformers.accounting.forward_pass import Passed, one_token
from pytest_llmperf.engines.transformers.quantize.storage import (
    distinct,
    inner_tensors,
    is_linear,
    logical_weights,
    plain_tensors,
    stored_tensors,
)
from pytest_llmperf.instruments.layers import identity

FLOPS_PER_STATE_ELEMENT = 5
"""h = a * h + b * x and y = c . h: three multiplications and two additions."""


def step_cost(
    model: Any, cache: CacheSeen, batch: int, compute_dtype: str, passed: Passed | None = None
) -> StepCost:
    """Return the cost of one decode step of `batch` sequences, with the KV cache of a run.

    `passed` says what one token goes through; without it, one token is run.
    """
    ran = one_token(model) if passed is None else passed
    attention: Attention = attention_of(model, cache)
    states = FLOPS_PER_STATE_ELEMENT * cache.recurrent_elements
    return StepCost(
        weight_bytes_read=weight_bytes_read(model, batch, ran),
        kv_bytes_per_token=attention.kv_bytes_per_token,
        flops_per_token=2.0 * active_elements(model, ran) + states,
        head_flops=2.0 * _head_elements(model),
        attention_flops_per_token_per_position=attention.flops_per_token_per_position,
        windows=attention.windows,
        expansion_flops_per_position=attention.expansion_flops_per_position,
        state_bytes=2 * cache.state_bytes,
        compute_dtype=compute_dtype,
    )


def attention_divided(cost: StepCost, ranks: int) -> StepCost:
    """Return the cost of a rank whose heads are one part of `ranks`."""
    windows = [
        replace(
            window,
            attention_flops_per_token_per_position=(
                window.attention_flops_per_token_per_position / ranks
            ),
        )
        for window in cost.windows
    ]
    return replace(
        cost,
        attention_flops_per_token_per_position=cost.attention_flops_per_token_per_position / ranks,
        windows=tuple(windows),
    )


def weight_bytes_read(model: Any, batch: int, passed: Passed | None = None) -> int:
    """Return the bytes of the parameters that a step reads, as often as they are used.

    Of a table that is only looked up (an untied embedding) each sequence reads one row.
    Of the experts of a mixture those are read that the batch's tokens are expected to choose.
    Quantized layers count by what they store: packed weights, scales, zero points and tables.
    """
    ran = one_token(model) if passed is None else passed
    experts = experts_of(model, ran)
    inside = _modules_of(experts)
    others = [module for module in model.modules() if module not in inside]
    plain = [module for module in others if not isinstance(module, nn.Embedding)]
    read = sum(_bytes_read(module, ran) for module in plain)
    looked_up = sum(_rows_read(table, batch) for table in _lookup_tables(others, plain, ran))
    return read + looked_up + sum(one.bytes_read(batch) for one in experts)


def _bytes_read(module: nn.Module, passed: Passed) -> int:
    """Return the bytes that a module reads of its own tensors, as often as it runs."""
    if _multiplies_itself(module):
        return passed.runs(module) * _bytes(stored_tensors(module)) or _touched(module, passed)
    return _touched(module, passed)


def _multiplies_itself(module: nn.Module) -> bool:
    """Whether it is a linear layer, and not what wraps one, or an embedding, for an adapter."""
    inner = (child for child in module.modules() if child is not module)
    is_wrapper = any(isinstance(child, nn.Embedding) or is_linear(child) for child in inner)
    return is_linear(module) and not is_wrapper


def _touched(module: nn.Module, passed: Passed) -> int:
    parameters = module.parameters(recurse=False)
    return sum(passed.reads(module, tensor) * storage_bytes(tensor) for tensor in parameters)


def _modules_of(experts: list[Experts]) -> set[nn.Module]:
    return set(chain.from_iterable(one.modules for one in experts))


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _rows_read(table: Tensor, batch: int) -> int:
    """Return the bytes of the rows of a table [rows, width] that the sequences look up."""
    rows = len(table)
    return min(batch, rows) * storage_bytes(table) // rows


def active_elements(model: Any, passed: Passed | None = None) -> float:
    """Return the multiply-adds of one token: linear layers, routers, its experts, convolutions."""
    ran = one_token(model) if passed is None else passed
    experts = experts_of(model, ran)
    inside = _modules_of(experts)
    others = [module for module in model.modules() if module not in inside]
    linear = sum(ran.multiplied(layer) for layer in others if _multiplies_itself(layer))
    convolved = sum(
        ran.reads(layer, layer.weight) * layer.weight.numel()
        for layer in others
        if isinstance(layer, nn.Conv1d)
    )
    chosen = sum(one.multiplied for one in experts)
    # Which adapter is in force changes; who switches them adds what it multiplies.
    plain = [module for module in others if not getattr(module, "belongs_to_adapter", False)]
    return linear + convolved + chosen + ran.multiplied_outside(of=plain)


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


def _lookup_tables(
    modules: list[nn.Module], multiplying: list[nn.Module], passed: Passed
) -> Iterator[Tensor]:
    """Yield the embeddings that run and that no other module reads in full, each once."""
    in_full = {identity(tensor) for module in multiplying for tensor in _own_tensors(module)}
    running = [m for m in modules if isinstance(m, nn.Embedding) and passed.runs(m)]
    for tensor in distinct(chain.from_iterable(m.parameters(recurse=False) for m in running)):
        if identity(next(inner_tensors(tensor))) not in in_full:
            yield tensor


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from plain_tensors(module.parameters(recurse=False))
