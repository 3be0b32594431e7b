"""Attention heads and MLP channels removed, so that the model gets smaller.

Coupled structures as in LLM-Pruner (Ma et al., 2023, https://arxiv.org/abs/2305.11627), ranked by
Wanda's score of their outgoing weights, summed: sum |w| x ||x|| over the columns that read them
(Wanda-sp in An et al., 2024, https://arxiv.org/abs/2312.11983). No gradients and no fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_llmperf.engines.transformers.prune.blocks import Block, BlockInputs, matrix, plain
from pytest_llmperf.engines.transformers.prune.calibration import Calibration
from pytest_llmperf.engines.transformers.prune.families import Coupled, family_of, submodule
from pytest_llmperf.engines.transformers.prune.unstructured import SquaredNorm, finite, watched
from pytest_llmperf.errors import LoadError
from pytest_llmperf.strategies.pruned import Pruning

_WIDTHS = (64, 32, 16, 8, 4, 2, 1)
_ROUNDING = 0.004
"""What rounding channels to a multiple of a matmul's tile may change in the share of weights that goes."""


@dataclass(frozen=True)
class Cut:
    """How many attention units and MLP channels of every block stay."""

    units: int
    channels: int


def remove_structures(
    model: Any, blocks: list[Block], asked: Pruning, calibrated: Calibration
) -> dict[str, str | int | float]:
    """Remove the share that is asked for, block by block. Returns what is recorded of it.

    Raises LoadError for a family that is not known, and for a share that would leave no head or
    channel.
    """
    family, config = family_of(model), model.config
    attention, channels = family.attention(config), family.channels(config)
    _require_plain(blocks, (attention, channels))
    cut = plan_cut(blocks[0], attention, channels, asked)
    sizes = family.sizes(config, cut.units, cut.channels)
    before = {"heads_before": config.num_attention_heads, "channels_before": channels.units}
    inputs = BlockInputs(model, blocks, calibrated.rows)
    for index, block in enumerate(blocks):
        consumers = {
            kind.consumer: submodule(block, kind.consumer) for kind in (attention, channels)
        }
        with watched(consumers, SquaredNorm) as seen:
            inputs.run(index, block)
        for kind, keep in ((attention, cut.units), (channels, cut.channels)):
            norms = finite(seen[kind.consumer].value, f"{block.name}.{kind.consumer}", asked).sqrt()
            keep_units(
                block, kind, most_important(kind, submodule(block, kind.consumer), norms, keep)
            )
        family.resize_block(block, sizes)
        inputs.advance(index, block)
    family.resize_model(model, sizes)
    after = {"heads": sizes.heads, "kv_heads": sizes.kv_heads, "channels": sizes.channels}
    return {
        "score": "sum of |weight| x input L2 norm over outgoing weights",
        "compared_in": "block",
        **before,
        **after,
    }


def plan_cut(block: Block, attention: Coupled, channels: Coupled, asked: Pruning) -> Cut:
    """Whole attention units up to the share, and MLP channels for the rest of it, so that the block loses `sparsity`.

    Channels that stay are rounded to a multiple of up to 64, as far as the share allows it: odd widths are slow to multiply.
    """
    total = sum(_weights(layer) for layer in block.linears.values())
    per_unit, per_channel = (_weights_of_unit(block, kind) for kind in (attention, channels))
    units_gone = int(asked.sparsity * attention.units)
    rest = (asked.sparsity * total - units_gone * per_unit) / per_channel
    width = next(w for w in _WIDTHS if w == 1 or w / 2 * per_channel <= _ROUNDING * total)
    stay = round((channels.units - rest) / width) * width
    if stay < 1 or attention.units - units_gone < 1:
        raise LoadError(
            f"pruning {asked}: block {block.name} has {attention.units} attention units and {channels.units} MLP channels, and "
            f"{asked.sparsity:.0%} of its weights cannot go without the last of either. Ask for less.",
        )
    return Cut(attention.units - units_gone, min(stay, channels.units))


def most_important(kind: Coupled, consumer: nn.Module, norms: Tensor, keep: int) -> Tensor:
    """The `keep` units of the highest score, in their order: [keep] indices.

    `norms` are of the consumer's inputs.
    """
    # nn.Module's attributes.
    scores = consumer.weight.data.float().abs().sum(0) * norms  # type: ignore[operator]
    by_unit = scores[kind.columns.to(scores.device)].sum(1)
    return by_unit.topk(keep).indices.sort().values.to("cpu")


def keep_units(block: Block, kind: Coupled, units: Tensor) -> None:
    """Leave only `units` of a kind in the block's matrices.

    Rows that are in no unit stay where they were.
    """
    for name, rows in kind.rows.items():
        layer = submodule(block, name)
        # A plain number.
        stay = torch.ones(int(layer.out_features), dtype=torch.bool)  # type: ignore[arg-type]
        stay[rows.flatten()] = False
        stay[rows[units].flatten()] = True
        _select(layer, 0, stay.nonzero().flatten())
    _select(submodule(block, kind.consumer), 1, kind.columns[units].flatten())


def _select(layer: Any, dim: int, index: Tensor) -> None:
    """Keep these rows (0) or columns (1) of a linear layer, and what of its bias goes with rows."""
    index = index.to(layer.weight.device)
    layer.weight = nn.Parameter(
        layer.weight.data.index_select(dim, index).contiguous(), requires_grad=False
    )
    if dim == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.data.index_select(0, index), requires_grad=False)
    layer.out_features, layer.in_features = layer.weight.shape


def _weights_of_unit(block: Block, kind: Coupled) -> int:
    producers = sum(
        index.shape[1] * matrix(submodule(block, name)).shape[1]
        for name, index in kind.rows.items()
    )
    return producers + kind.columns.shape[1] * matrix(submodule(block, kind.consumer)).shape[0]


def _weights(layer: Any) -> int:
    return int(layer.weight.numel())


def _require_plain(blocks: list[Block], kinds: tuple[Coupled, ...]) -> None:
    names = {name for kind in kinds for name in (*kind.rows, kind.consumer)}
    for block in blocks:
        packed = [name for name in sorted(names) if not plain(submodule(block, name))]
        if packed:
            raise LoadError(
                f"pruning structured: {block.name}.{packed[0]} holds no plain matrix. Prune before quantizing."
            )
