"""Attention heads and MLP channels removed, so that the model gets smaller.

Coupled structures as in LLM-Pruner (Ma et al., 2023, https://arxiv.org/abs/2305.11627), ranked by
Wanda's score of their outgoing weights, summed: sum |w| x ||x|| over the columns that read them
(Wanda-sp in An et al., 2024, https://arxiv.org/abs/2312.11983). No gradients and no fine-tuning.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
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
"""How much rounding channels to a matmul's tile may change the share of weights that goes."""


SCORING = {
    "score": "sum of |weight| x input L2 norm over outgoing weights",
    "compared_in": "block",
}


@dataclass(frozen=True)
class Cut:
    """How many attention units and MLP channels of every block stay."""

    units: int
    channels: int


def remove_structures(
    model: Any, blocks: list[Block], pruning: Pruning, text: Calibration
) -> dict[str, str | int | float]:
    """Remove the share that `pruning` says, block by block. Returns what is recorded of it.

    Raises LoadError for a family that is not known, and for a share that would leave no head or
    channel.
    """
    family, config = family_of(model), model.config
    attention, channels = family.attention(config), family.channels(config)
    _require_plain(blocks, (attention, channels))
    cut = plan_cut(blocks[0], attention, channels, pruning)
    sizes = family.sizes(config, cut.units, cut.channels)
    heads_before = config.num_attention_heads
    units = ((attention, cut.units), (channels, cut.channels))
    inputs = BlockInputs(model, blocks, text.rows)
    for index, block in enumerate(blocks):
        _cut_block(inputs, index, block, units, pruning)
        family.resize_block(block, sizes)
        inputs.advance(index, block)
    family.resize_model(model, sizes)
    before = {"heads_before": heads_before, "channels_before": channels.units}
    return {**SCORING, **before, **asdict(sizes)}


def _cut_block(
    inputs: BlockInputs,
    index: int,
    block: Block,
    units: tuple[tuple[Coupled, int], ...],
    pruning: Pruning,
) -> None:
    """Leave so many units of each kind in a block, ranked by the inputs of their consumers."""
    consumers = {kind.consumer: submodule(block, kind.consumer) for kind, _ in units}
    with watched(consumers, SquaredNorm) as statistics:
        inputs.run(index, block)
    for kind, keep in units:
        statistic = statistics[kind.consumer].value
        norms = finite(statistic, f"{block.name}.{kind.consumer}", pruning).sqrt()
        keep_units(block, kind, most_important(kind, consumers[kind.consumer], norms, keep))


def plan_cut(block: Block, attention: Coupled, channels: Coupled, pruning: Pruning) -> Cut:
    """Choose whole attention units up to the share, and MLP channels for the rest of it.

    The block then loses `sparsity`. Channels that stay are rounded to a multiple of up to 64, as
    far as the share allows it: odd widths are slow to multiply. Raises LoadError for a share that
    would leave no unit or channel.
    """
    total = sum(_weights(layer) for layer in block.linears.values())
    removed_units = int(pruning.sparsity * attention.units)
    removed_weights = removed_units * _weights_of_unit(block, attention)
    per_channel = _weights_of_unit(block, channels)
    removed_channels = (pruning.sparsity * total - removed_weights) / per_channel
    kept_channels = _rounded(channels.units - removed_channels, per_channel, total)
    kept_units = attention.units - removed_units
    if kept_channels < 1 or kept_units < 1:
        raise LoadError(
            f"pruning {pruning}: block {block.name} has {attention.units} attention units and "
            f"{channels.units} MLP channels, and {pruning.sparsity:.0%} of its weights cannot go "
            "without the last of either. Ask for less.",
        )
    return Cut(kept_units, min(kept_channels, channels.units))


def _rounded(channels: float, per_channel: int, total: int) -> int:
    """Round to the widest multiple that changes at most _ROUNDING of a block's `total` weights."""
    allowed = _ROUNDING * total
    width = next(w for w in _WIDTHS if w == 1 or w / 2 * per_channel <= allowed)
    return round(channels / width) * width


def most_important(kind: Coupled, consumer: nn.Module, norms: Tensor, keep: int) -> Tensor:
    """Return the `keep` units of the highest score, in their order: [keep] indices.

    `norms` are of the consumer's inputs.
    """
    scores = _scores(consumer, norms)
    by_unit = scores[kind.columns.to(scores.device)].sum(1)
    return by_unit.topk(keep).indices.sort().values.to("cpu")


def _scores(consumer: Any, norms: Tensor) -> Tensor:
    """Return Wanda's score of the consumer's columns: sum |w| x ||x|| over its outputs."""
    scores: Tensor = consumer.weight.data.float().abs().sum(0) * norms
    return scores


def keep_units(block: Block, kind: Coupled, units: Tensor) -> None:
    """Leave only `units` of a kind in the block's matrices.

    Rows that are in no unit stay where they were.
    """
    for name, rows in kind.rows.items():
        layer = submodule(block, name)
        _select(layer, 0, _rows_that_stay(layer, rows, units))
    _select(submodule(block, kind.consumer), 1, kind.columns[units].flatten())


def _rows_that_stay(layer: Any, rows: Tensor, units: Tensor) -> Tensor:
    """Return the indices of rows that are in one of `units`, or in no unit."""
    stay = torch.ones(int(layer.out_features), dtype=torch.bool)
    stay[rows.flatten()] = False
    stay[rows[units].flatten()] = True
    return stay.nonzero().flatten()


def _select(layer: Any, dim: int, index: Tensor) -> None:
    """Keep these rows (0) or columns (1) of a linear layer, and of its bias the entries of rows."""
    index = index.to(layer.weight.device)
    weight = layer.weight.data.index_select(dim, index).contiguous()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if dim == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.data.index_select(0, index), requires_grad=False)
    layer.out_features, layer.in_features = layer.weight.shape


def _weights_of_unit(block: Block, kind: Coupled) -> int:
    """Return the weights that one unit has in all matrices of a block."""
    outputs, _ = _shape(block, kind.consumer)
    weights = kind.columns.shape[1] * outputs
    for name, rows in kind.rows.items():
        _, inputs = _shape(block, name)
        weights += rows.shape[1] * inputs
    return weights


def _shape(block: Block, name: str) -> tuple[int, int]:
    """Return the outputs and inputs of one of the block's matrices."""
    outputs, inputs = matrix(submodule(block, name)).shape
    return outputs, inputs


def _weights(layer: Any) -> int:
    return int(layer.weight.numel())


def _require_plain(blocks: list[Block], kinds: tuple[Coupled, ...]) -> None:
    names = {name for kind in kinds for name in (*kind.rows, kind.consumer)}
    for block in blocks:
        packed = [name for name in sorted(names) if not plain(submodule(block, name))]
        if packed:
            raise LoadError(
                f"pruning structured: {block.name}.{packed[0]} holds no plain matrix. "
                "Prune before quantizing."
            )
