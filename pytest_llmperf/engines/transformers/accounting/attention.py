"""What attention costs a step, layer by layer: keys and values as the cache holds them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from pytest_llmperf.core.trace import Window
from pytest_llmperf.engines.outputs.decoding import CacheSeen, LayerSeen
from pytest_llmperf.engines.transformers.quantize.storage import logical_weights
from pytest_llmperf.instruments.layers import attention_flops


class Attention(NamedTuple):
    """Bytes and FLOPs as in StepCost."""

    kv_bytes_per_token: int
    flops_per_token_per_position: float
    windows: tuple[Window, ...] = ()
    expansion_flops_per_position: float = 0.0


class _Reach(NamedTuple):
    """How far back a layer sees; None for all positions."""

    positions: int | None
    chunked: bool


def attention_of(model: Any, cache: CacheSeen) -> Attention:
    """Return what the layers of a cache cost, by how far they see.

    A layer that other layers read as well (shared keys and values) counts once for each.
    """
    config = model.config.get_text_config()
    if cache.layers and not cache.attention:
        return Attention(cache.bytes_per_position, attention_flops(config, cache.layers))
    readers = _readers(model, cache.attention)
    by_reach: dict[_Reach, list[LayerSeen]] = defaultdict(list)
    for layer in cache.attention:
        chunked = layer.window is not None and _is_chunked(config, layer.place)
        by_reach[_Reach(layer.window, chunked)] += [layer] * readers[layer.place]
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    latent = _latent_attention(model, cache)
    if latent is not None:
        return latent
    everywhere = by_reach.pop(_Reach(None, chunked=False), [])
    windows = [_window(reach, layers, heads) for reach, layers in sorted(by_reach.items())]
    return Attention(_kv_bytes(everywhere), _flops(everywhere, heads), tuple(windows))


def _latent_attention(model: Any, cache: CacheSeen) -> Attention | None:
    """Return the cost where the cache holds latents, which each step expands to keys and values.

    None for other models.
    """
    modules = [
        module
        for module in model.modules()
        if getattr(module, "kv_b_proj", None) is not None
        and any(layer.key_dim == module.kv_lora_rank for layer in cache.attention)
    ]
    if not modules:
        return None
    head_dims = sum(m.num_heads * (m.qk_head_dim + m.v_head_dim) for m in modules)
    return Attention(
        kv_bytes_per_token=cache.bytes_per_position,
        flops_per_token_per_position=2.0 * head_dims,
        expansion_flops_per_position=2.0 * sum(logical_weights(m.kv_b_proj) for m in modules),
    )


def _window(reach: _Reach, layers: Sequence[LayerSeen], heads: int) -> Window:
    return Window(
        positions=reach.positions or 0,
        kv_bytes_per_token=_kv_bytes(layers),
        attention_flops_per_token_per_position=_flops(layers, heads),
        chunked=reach.chunked,
    )


def _kv_bytes(layers: Sequence[LayerSeen]) -> int:
    return sum(layer.bytes_per_position for layer in layers)


def _flops(layers: Sequence[LayerSeen], heads: int) -> float:
    """Return 2 for the score and 2 for the weighted sum, for each dimension of a query head."""
    return sum(2.0 * heads * (layer.key_dim + layer.value_dim) for layer in layers)


def _readers(model: Any, layers: Sequence[LayerSeen]) -> Counter[int]:
    """Return how many attention modules read each layer of the cache: its own and others."""
    readers = Counter({layer.place: 1 for layer in layers})
    config = model.config.get_text_config()
    types = list(getattr(config, "layer_types", None) or ())
    for module in model.modules():
        if getattr(module, "is_kv_shared_layer", False):
            index = _source(int(module.layer_idx), types, readers)
            readers[index] += index in readers
    return readers


def _source(sharing: int, types: Sequence[str], held: Counter[int]) -> int:
    """Return the layer whose keys and values a layer takes: the last before it of its type."""
    same = [i for i in held if i < sharing and (not types or types[i] == types[sharing])]
    return max(same, default=-1)


def _is_chunked(config: Any, index: int) -> bool:
    types = list(getattr(config, "layer_types", None) or ())
    return index < len(types) and "chunked" in types[index]
