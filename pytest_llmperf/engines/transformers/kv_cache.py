"""KV caches: those in 8 bit, made afresh for each run, and any cache as it is seen after a run, by its own tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from torch import Tensor
from transformers import cache_utils

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import UsageError

GROUP = 64
"""Values that share a scale and a zero point in the int8 cache: a head's vector of one position, in parts of at most 64."""


@dataclass(frozen=True)
class CacheSeen:
    """The KV cache as it was after a run.

    `kind` is its class, of a quantised one with the dtype that it stores; `bytes` are all its keys and values with their
    scales, `bytes_per_position` those of one token of one sequence.
    """

    kind: str
    bytes: int
    bytes_per_position: int
    layers: int


def require_cache(plan: LoadPlan) -> None:
    """Raise UsageError, before anything is loaded, where the installed packages do not have the plan's cache."""
    if plan.cache == "int8" and find_spec("hqq") is None:
        raise UsageError(
            "strategy part 'kv-int8' needs the package hqq on top of engine 'transformers', which is not installed. "
            "pip install 'pytest-llmperf[hqq]'; 'kv-fp8' needs no package."
        )
    if plan.cache == "fp8" and not hasattr(cache_utils, "Fp8QuantizedLayer"):
        raise UsageError(
            f"strategy part 'kv-fp8' needs transformers 5.21 or newer, {metadata.version('transformers')} is installed. "
            "Install a newer one, or take 'kv-int8'."
        )


def cache_maker(model: Any, plan: LoadPlan) -> Callable[[], Any] | None:
    """What makes the empty cache of a run; None where `generate` makes its own."""
    if plan.cache not in {"int8", "fp8"}:
        return None
    config = model.config.get_text_config(decoder=True)
    if plan.cache == "fp8":
        return lambda: cache_utils.QuantizedCache(backend="fp8", config=config)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    group = GROUP if head_dim % GROUP == 0 else head_dim
    return lambda: cache_utils.QuantizedCache(backend="hqq", config=config, nbits=8, axis_key=1, axis_value=1, q_group_size=group)


def cache_seen(cache: Any) -> CacheSeen:
    """Describe a transformers cache by its own tensors ([batch, heads, positions, head_dim] each for keys and values)."""
    quantised = {str(values.dtype).removeprefix("torch.") for layer in cache.layers for values in _quantised(layer)}
    kind = type(cache).__name__ + "".join(f" of {dtype}" for dtype in sorted(quantised))
    if quantised:
        return _quantised_seen(cache, kind)
    pairs = [(layer.keys, layer.values) for layer in cache.layers if getattr(layer, "keys", None) is not None]
    per_position = sum(t.nbytes // (t.shape[0] * t.shape[2]) for pair in pairs for t in pair if t.numel())
    return CacheSeen(kind, sum(t.nbytes for pair in pairs for t in pair), per_position, len(pairs))


def _quantised_seen(cache: Any, kind: str) -> CacheSeen:
    """With scales, zero points and the newest positions, which an int8 cache keeps in full precision."""
    layers = [layer for layer in cache.layers if layer.get_seq_length()]
    size = sum(tensor.nbytes for layer in layers for tensor in _tensors(vars(layer)))
    rows = _rows(layers[0])
    return CacheSeen(kind, size, size // (rows * layers[0].get_seq_length()), len(layers))


def _quantised(layer: Any) -> list[Tensor]:
    """The 8-bit values of keys and values; nothing for a layer that is not quantised, or not used yet."""
    pairs = (getattr(layer, name, None) for name in ("_quantized_keys", "_quantized_values"))
    return [next(_tensors(pair)) for pair in pairs if pair is not None]


def _rows(layer: Any) -> int:
    """Sequences: hqq keeps values flat and their shape beside them."""
    values, facts = layer._quantized_keys  # noqa: SLF001  # where transformers puts them
    return int(facts["shape"][0] if isinstance(facts, dict) else values.shape[0])


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples and dictionaries, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)
