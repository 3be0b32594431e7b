"""KV caches: those in 8 bit, made afresh for each run, and any described by its own tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, cache_utils
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticSlidingWindowLayer,
)

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.outputs.decoding import CacheSeen, LayerSeen
from pytest_llmperf.errors import InvalidRun, UsageError
from pytest_llmperf.instruments.layers import dtype_name

INT8_MAX = 127
SMALLEST_SCALE = 6e-8
"""The smallest float16 above zero, so that a position of zeros has a scale."""


class Int8Layer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers is partly typed
    """Keys and values in int8 with one float16 scale a head and position.

    What is appended never changes what the layer holds. transformers' own 8-bit integers need hqq,
    whose import compiles, requantize the whole cache now and then, and keep the newest 128
    positions in full precision.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._quantized_keys: Pair | None = None
        self._quantized_values: Pair | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [batch, heads, n, head_dim] and return all, dequantized.

        The states that were just appended are returned unchanged.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = [_dequantized(pair, new) for pair, new in self._pairs(key_states, value_states)]
        self._quantized_keys = _appended(self._quantized_keys, _quantize(key_states))
        self._quantized_values = _appended(self._quantized_values, _quantize(value_states))
        return torch.cat([past[0], key_states], dim=-2), torch.cat([past[1], value_states], dim=-2)

    def get_seq_length(self) -> int:
        """Return the number of positions that the layer holds."""
        return 0 if self._quantized_keys is None else int(self._quantized_keys[0].shape[-2])

    def _pairs(
        self, keys: Tensor, values: Tensor
    ) -> tuple[tuple[Pair | None, Tensor], tuple[Pair | None, Tensor]]:
        return (self._quantized_keys, keys), (self._quantized_values, values)


Pair = tuple[Tensor, Tensor]
"""int8 values [batch, heads, n, head_dim], and their scales [batch, heads, n, 1]."""


def _quantize(states: Tensor) -> Pair:
    """Quantize [batch, heads, n, head_dim] symmetrically, to 127 steps either way."""
    scale = (
        (states.abs().amax(dim=-1, keepdim=True).float() / INT8_MAX)
        .clamp(min=SMALLEST_SCALE)
        .to(torch.float16)
    )
    return (states.float() / scale.float()).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale


def _dequantized(pair: Pair | None, like: Tensor) -> Tensor:
    if pair is None:
        return like[..., :0, :]
    return (pair[0].float() * pair[1].float()).to(like.dtype)


def _appended(pair: Pair | None, new: Pair) -> Pair:
    if pair is None:
        return new
    return torch.cat([pair[0], new[0]], dim=-2), torch.cat([pair[1], new[1]], dim=-2)


def require_cache(plan: LoadPlan) -> None:
    """Raise UsageError where the installed transformers does not have the plan's cache."""
    if plan.cache == "fp8" and not hasattr(cache_utils, "Fp8QuantizedLayer"):
        raise UsageError(
            "strategy part 'kv-fp8' needs transformers 5.21 or newer, "
            f"{metadata.version('transformers')} is installed. "
            "Install a newer one, or take 'kv-int8'.",
        )


def cache_maker(model: Any, plan: LoadPlan) -> Callable[[], Any] | None:
    """Return what makes the empty cache of a run; None where `generate` makes its own.

    Raises UsageError for a model whose cache has layers other than those of full attention.
    """
    if plan.cache not in {"int8", "fp8"}:
        return None
    config = model.config.get_text_config(decoder=True)
    unusual = unusual_layers(DynamicCache(config=config), DynamicLayer)
    if unusual:
        raise UsageError(
            f"strategy part 'kv-{plan.cache}': {type(model).__name__} needs cache layers "
            f"{unusual}, and only those of full attention are quantized. Leave the part out.",
        )
    if plan.cache == "fp8":
        return lambda: cache_utils.QuantizedCache(backend="fp8", config=config)
    return lambda: Cache(layers=[Int8Layer() for _ in range(config.num_hidden_layers)])


def unusual_layers(cache: Cache, usual: type) -> str:
    """Return the class names of a cache's layers that are not exactly `usual`; "" for none."""
    classes = {type(layer) for layer in cache.layers}
    return ", ".join(sorted(cls.__name__ for cls in classes if cls is not usual))


def cache_seen(cache: Any) -> CacheSeen:
    """Describe a transformers cache by its own tensors.

    Keys and values are [batch, heads, positions, head_dim] each, states [batch, …]; a plain list of
    tensors holds states. Raises InvalidRun where a run left no cache: each of its steps computed
    the whole text again.
    """
    if isinstance(cache, list | tuple) and any(True for _ in _tensors(tuple(cache))):
        return _states_seen(type(cache).__name__, [], list(_tensors(tuple(cache))))
    if not hasattr(cache, "layers"):
        raise InvalidRun(
            f"the run left {type(cache).__name__} as its cache, and keys, values or states are "
            "needed: without them each step computes the whole text again. Let the model's "
            "generate() use its cache (use_cache=True)."
        )
    attention = tuple(_attention_layers(cache))
    kind = type(cache).__name__ + "".join(f" of {dtype}" for dtype in _quantized_dtypes(cache))
    states = _states_seen(kind, _states(cache, "conv_states"), _states(cache, "recurrent_states"))
    return replace(
        states,
        bytes=states.bytes + sum(t.nbytes for layer in cache.layers for t in _held(layer)),
        bytes_per_position=sum(layer.bytes_per_position for layer in attention),
        layers=len(attention),
        attention=attention,
    )


def _states_seen(kind: str, conv: list[Tensor], recurrent: list[Tensor]) -> CacheSeen:
    states = [*conv, *recurrent]
    return CacheSeen(
        kind=kind,
        bytes=sum(tensor.nbytes for tensor in states),
        bytes_per_position=0,
        layers=0,
        state_bytes=sum(tensor.nbytes // len(tensor) for tensor in states),
        recurrent_elements=sum(tensor.numel() // len(tensor) for tensor in recurrent),
    )


def _quantized_dtypes(cache: Any) -> list[str]:
    return sorted({dtype_name(values) for layer in cache.layers for values in _quantized(layer)})


def _held(layer: Any) -> list[Tensor]:
    """Return the tensors of a layer's keys and values, with the scales of quantized ones."""
    if _quantized(layer):
        return list(_tensors(vars(layer)))
    pair = (getattr(layer, name, None) for name in ("keys", "values"))
    return [tensor for tensor in pair if tensor is not None]


def _attention_layers(cache: Any) -> Iterator[LayerSeen]:
    """Yield the layers that hold keys and values; others have states alone, or were not used."""
    for place, layer in enumerate(cache.layers):
        tensors = _held(layer)
        if tensors:
            keys, values = _quantized(layer) or tensors
            yield LayerSeen(
                place=place,
                bytes_per_position=_bytes_per_position(layer, tensors),
                key_dim=int(keys.shape[-1]),
                value_dim=int(values.shape[-1]),
                window=_window(layer),
            )


def _bytes_per_position(layer: Any, tensors: list[Tensor]) -> int:
    """Return the bytes of one position of one sequence.

    Plain keys and values are [batch, heads, positions, head_dim]; all tensors of a quantized layer
    are divided among its positions.
    """
    quantized = _quantized(layer)
    if quantized:
        size = sum(tensor.nbytes for tensor in tensors)
        return size // (len(quantized[0]) * int(layer.get_seq_length()))
    return sum(
        tensor.nbytes // (tensor.shape[0] * tensor.shape[2]) for tensor in tensors if tensor.numel()
    )


def _window(layer: Any) -> int | None:
    """Return how many positions a layer sees, of a layer that does not see all."""
    if isinstance(layer, StaticSlidingWindowLayer):
        return int(layer.max_cache_len)
    window = getattr(layer, "sliding_window", None)
    return int(window) if isinstance(layer, DynamicSlidingWindowLayer) and window else None


def _states(cache: Any, name: str) -> list[Tensor]:
    """Return the states of all layers that have such, each [batch, …]."""
    by_layer = (getattr(layer, name, None) or {} for layer in cache.layers)
    return [state for states in by_layer for state in states.values() if state is not None]


def _quantized(layer: Any) -> list[Tensor]:
    """Return the 8-bit values of keys and values.

    The list is empty for a layer that is not quantized, or not used yet.
    """
    pairs = (getattr(layer, name, None) for name in ("_quantized_keys", "_quantized_values"))
    return [pair[0] for pair in pairs if pair is not None]


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)
