"""Which rows and columns of a block's matrices belong to one attention head or MLP channel.

That is known for some families of models. Sizes of attention and MLP are in the config, once for
all blocks: every block keeps as many heads and channels as the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import FalconConfig

from pytest_llmperf.engines.transformers.prune.blocks import Block
from pytest_llmperf.errors import LoadError
from pytest_llmperf.strategies.pruned import STRUCTURED_FAMILIES


@dataclass(frozen=True)
class Coupled:
    """Structures of one kind in a block.

    Unit u is rows[name][u] of each producer and columns[u] of the consumer. `rows` and `columns`
    are [units, n] indices; rows that are in no unit stay.
    """

    rows: dict[str, Tensor]
    consumer: str
    columns: Tensor

    @property
    def units(self) -> int:
        """Return how many there are in a block."""
        return len(self.columns)


@dataclass(frozen=True)
class Sizes:
    """The query heads, key-value heads and MLP channels that stay in every block."""

    heads: int
    kv_heads: int
    channels: int


@dataclass(frozen=True)
class Family:
    """A family of architectures: its structures, and how their numbers are set when some go.

    `sizes(config, attention units, channels)` returns the sizes that stay; `resize_block` and
    `resize_model` set them in the modules and in the config.
    """

    attention: Callable[[Any], Coupled]
    channels: Callable[[Any], Coupled]
    sizes: Callable[[Any, int, int], Sizes]
    resize_block: Callable[[Block, Sizes], None]
    resize_model: Callable[[Any, Sizes], None]


def family_of(model: Any) -> Family:
    """Return the family of a model.

    Raises LoadError for a family that is not known, or for position biases by head.
    """
    kind = model.config.get_text_config().model_type
    if kind not in FAMILIES:
        raise LoadError(
            f"pruning structured: {type(model).__name__} is of family {kind!r}, and which of its "
            "rows and columns belong to one head is known for "
            f"{', '.join(STRUCTURED_FAMILIES)}. Use 'wanda:S', which works for any.",
        )
    if getattr(model.config, "alibi", False):
        raise LoadError(
            "pruning structured: ALiBi's slopes go by the number of heads, which would change. "
            "Use 'wanda:S'."
        )
    return FAMILIES[kind]


def _consecutive(units: int, length: int) -> Tensor:
    """Return indices [units, length]: unit u has the `length` indices from u * length on."""
    return torch.arange(units * length).view(units, length)


def _llama_attention(config: Any) -> Coupled:
    """Couple a key-value head with all its query heads.

    Where all query heads share one key-value head, a query head is a unit.
    """
    q, k, v, o = (f"self_attn.{part}_proj" for part in "qkvo")
    dim, kv_heads = config.head_dim, config.num_key_value_heads
    if kv_heads == 1:
        query_heads = _consecutive(config.num_attention_heads, dim)
        return Coupled({q: query_heads}, o, query_heads)
    queries = _consecutive(kv_heads, config.num_attention_heads // kv_heads * dim)
    shared = _consecutive(kv_heads, dim)
    return Coupled({q: queries, k: shared, v: shared}, o, queries)


def _llama_channels(config: Any) -> Coupled:
    channels = _consecutive(config.intermediate_size, 1)
    return Coupled({"mlp.gate_proj": channels, "mlp.up_proj": channels}, "mlp.down_proj", channels)


def _llama_sizes(config: Any, units: int, channels: int) -> Sizes:
    kv_heads = config.num_key_value_heads
    if kv_heads == 1:
        return Sizes(units, 1, channels)
    return Sizes(units * (config.num_attention_heads // kv_heads), units, channels)


def _resize_llama_block(block: Block, sizes: Sizes) -> None:
    layer: Any = block.module
    layer.self_attn.num_key_value_groups = sizes.heads // sizes.kv_heads
    layer.mlp.intermediate_size = sizes.channels


def _resize_llama(model: Any, sizes: Sizes) -> None:
    config = model.config
    config.num_attention_heads, config.num_key_value_heads = sizes.heads, sizes.kv_heads
    config.intermediate_size = sizes.channels


class SlimFalconConfig(FalconConfig):  # type: ignore[no-untyped-call]  # no stubs
    """A Falcon config whose heads are fewer than hidden_size // head_dim.

    FalconConfig derives head_dim from the number of heads.
    """

    @property
    def head_dim(self) -> int:
        """Return the elements of a head."""
        return int(self.kept_head_dim)


def _falcon_groups(config: Any) -> tuple[int, int]:
    """Return groups of query heads that share keys and values, and the query heads in each."""
    heads = config.num_attention_heads
    if config.new_decoder_architecture:
        return config.num_kv_heads, heads // config.num_kv_heads
    return (1, heads) if config.multi_query else (heads, 1)


def _falcon_attention(config: Any) -> Coupled:
    """Couple a group of query heads, or a query head where there is one group.

    The fused matrix has, group by group, the query heads and then one key and one value head.
    """
    dim = config.head_dim
    groups, queries = _falcon_groups(config)
    fused, dense = "self_attention.query_key_value", "self_attention.dense"
    if groups == 1:
        query_heads = _consecutive(queries, dim)
        return Coupled({fused: query_heads}, dense, query_heads)
    rows = _consecutive(groups, (queries + 2) * dim)
    return Coupled({fused: rows}, dense, _consecutive(groups, queries * dim))


def _falcon_channels(config: Any) -> Coupled:
    channels = _consecutive(config.ffn_hidden_size, 1)
    return Coupled({"mlp.dense_h_to_4h": channels}, "mlp.dense_4h_to_h", channels)


def _falcon_sizes(config: Any, units: int, channels: int) -> Sizes:
    groups, queries = _falcon_groups(config)
    return Sizes(units, 1, channels) if groups == 1 else Sizes(units * queries, units, channels)


def _resize_falcon_block(block: Block, sizes: Sizes) -> None:
    layer: Any = block.module
    layer.self_attention.num_heads = sizes.heads
    layer.self_attention.num_kv_heads = sizes.kv_heads
    layer.num_heads = sizes.heads


def _resize_falcon(model: Any, sizes: Sizes) -> None:
    config = model.config
    config.kept_head_dim = config.head_dim
    config.__class__ = SlimFalconConfig
    is_multi_query = config.multi_query and not config.new_decoder_architecture
    config.num_attention_heads = sizes.heads
    config.num_kv_heads = sizes.heads if is_multi_query else sizes.kv_heads
    config.ffn_hidden_size = sizes.channels
    model.base_model.num_heads = sizes.heads


FAMILIES = {
    "llama": Family(
        _llama_attention, _llama_channels, _llama_sizes, _resize_llama_block, _resize_llama
    ),
    "falcon": Family(
        _falcon_attention, _falcon_channels, _falcon_sizes, _resize_falcon_block, _resize_falcon
    ),
}


def submodule(block: Block, name: str) -> nn.Module:
    """Return the block's matrix called `name`."""
    return block.module.get_submodule(name)
