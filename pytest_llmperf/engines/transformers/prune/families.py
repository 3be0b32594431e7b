"""Which rows and columns of a block's matrices belong to one attention head or MLP channel, for the families that are known.

Sizes of attention and MLP are in the config, once for all blocks: every block keeps as many heads and channels as the others.
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

    Unit u is rows[name][u] of each producer and columns[u] of the consumer.

    `rows` and `columns` are [units, n] indices; rows that are in no unit stay.
    """

    rows: dict[str, Tensor]
    consumer: str
    columns: Tensor

    @property
    def units(self) -> int:
        """How many there are in a block."""
        return len(self.columns)


@dataclass(frozen=True)
class Sizes:
    """What is left in every block: query heads, key-value heads, MLP channels."""

    heads: int
    kv_heads: int
    channels: int


@dataclass(frozen=True)
class Family:
    """A family of architectures: its structures, and what has to know of their number when some are gone.

    `sizes(config, attention units, channels)` that stay; `resize_block` and `resize_model` set what the modules and the
    config keep of them.
    """

    attention: Callable[[Any], Coupled]
    channels: Callable[[Any], Coupled]
    sizes: Callable[[Any, int, int], Sizes]
    resize_block: Callable[[Block, Sizes], None]
    resize_model: Callable[[Any, Sizes], None]


def family_of(model: Any) -> Family:
    """The family of a model.

    Raises LoadError for another than those that are known, or for position biases by head.
    """
    kind = model.config.get_text_config().model_type
    if kind not in FAMILIES:
        raise LoadError(
            f"pruning structured: {type(model).__name__} is of family {kind!r}, and which of its rows and columns belong to one "
            f"head is known for {', '.join(STRUCTURED_FAMILIES)}. Use 'wanda:S', which works for any.",
        )
    if getattr(model.config, "alibi", False):
        raise LoadError(
            "pruning structured: ALiBi's slopes go by the number of heads, which would change. Use 'wanda:S'."
        )
    return FAMILIES[kind]


def _ranges(starts: Tensor, length: int) -> Tensor:
    """[units, length]: `length` indices from each start."""
    return starts[:, None] + torch.arange(length)


def _llama_attention(config: Any) -> Coupled:
    """A key-value head with all its query heads.

    Where there is one key-value head for all, a query head.
    """
    dim, heads, kv = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    names = {part: f"self_attn.{part}_proj" for part in "qkvo"}
    if kv == 1:
        alone = _ranges(torch.arange(heads) * dim, dim)
        return Coupled({names["q"]: alone}, names["o"], alone)
    queries = _ranges(torch.arange(kv) * (heads // kv * dim), heads // kv * dim)
    shared = _ranges(torch.arange(kv) * dim, dim)
    return Coupled(
        {names["q"]: queries, names["k"]: shared, names["v"]: shared}, names["o"], queries
    )


def _llama_channels(config: Any) -> Coupled:
    each = _ranges(torch.arange(config.intermediate_size), 1)
    return Coupled({"mlp.gate_proj": each, "mlp.up_proj": each}, "mlp.down_proj", each)


def _llama_sizes(config: Any, units: int, channels: int) -> Sizes:
    kv = config.num_key_value_heads
    return (
        Sizes(units, 1, channels)
        if kv == 1
        else Sizes(units * (config.num_attention_heads // kv), units, channels)
    )


def _resize_llama_block(block: Block, sizes: Sizes) -> None:
    attention, mlp = (_any(block.module.get_submodule(name)) for name in ("self_attn", "mlp"))
    attention.num_key_value_groups = sizes.heads // sizes.kv_heads
    mlp.intermediate_size = sizes.channels


def _resize_llama(model: Any, sizes: Sizes) -> None:
    config = model.config
    config.num_attention_heads, config.num_key_value_heads = sizes.heads, sizes.kv_heads
    config.intermediate_size = sizes.channels


# Transformers is partly typed.
class SlimFalconConfig(FalconConfig):  # type: ignore[no-untyped-call]
    """A Falcon config whose heads are fewer than hidden_size // head_dim: FalconConfig derives head_dim from their number."""

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return int(self.kept_head_dim)


def _falcon_groups(config: Any) -> tuple[int, int]:
    """Groups of query heads that share keys and values, and query heads in each."""
    if config.new_decoder_architecture:
        return config.num_kv_heads, config.num_attention_heads // config.num_kv_heads
    return (
        (1, config.num_attention_heads) if config.multi_query else (config.num_attention_heads, 1)
    )


def _falcon_attention(config: Any) -> Coupled:
    """The fused matrix holds, group by group, the query heads and then one key and one value head."""
    dim = config.head_dim
    groups, queries = _falcon_groups(config)
    fused, dense = "self_attention.query_key_value", "self_attention.dense"
    if groups == 1:
        alone = _ranges(torch.arange(queries) * dim, dim)
        return Coupled({fused: alone}, dense, alone)
    rows = _ranges(torch.arange(groups) * ((queries + 2) * dim), (queries + 2) * dim)
    return Coupled(
        {fused: rows}, dense, _ranges(torch.arange(groups) * (queries * dim), queries * dim)
    )


def _falcon_channels(config: Any) -> Coupled:
    each = _ranges(torch.arange(config.ffn_hidden_size), 1)
    return Coupled({"mlp.dense_h_to_4h": each}, "mlp.dense_4h_to_h", each)


def _falcon_sizes(config: Any, units: int, channels: int) -> Sizes:
    groups, queries = _falcon_groups(config)
    return Sizes(units, 1, channels) if groups == 1 else Sizes(units * queries, units, channels)


def _resize_falcon_block(block: Block, sizes: Sizes) -> None:
    attention = _any(block.module.get_submodule("self_attention"))
    attention.num_heads, attention.num_kv_heads = sizes.heads, sizes.kv_heads
    _any(block.module).num_heads = sizes.heads


def _resize_falcon(model: Any, sizes: Sizes) -> None:
    config = model.config
    config.kept_head_dim = config.head_dim
    config.__class__ = SlimFalconConfig
    shared = config.multi_query and not config.new_decoder_architecture
    config.num_attention_heads, config.num_kv_heads = (
        sizes.heads,
        sizes.heads if shared else sizes.kv_heads,
    )
    config.ffn_hidden_size = sizes.channels
    model.base_model.num_heads = sizes.heads


def _any(module: nn.Module) -> Any:
    """For attributes that are plain numbers, which nn.Module's types do not know."""
    return module


FAMILIES = {
    "llama": Family(
        _llama_attention, _llama_channels, _llama_sizes, _resize_llama_block, _resize_llama
    ),
    "falcon": Family(
        _falcon_attention, _falcon_channels, _falcon_sizes, _resize_falcon_block, _resize_falcon
    ),
}


def submodule(block: Block, name: str) -> nn.Module:
    """The block's matrix called `name`."""
    return block.module.get_submodule(name)
