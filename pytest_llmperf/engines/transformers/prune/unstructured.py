"""Weights set to zero where they are: magnitude, Wanda and SparseGPT.

Blocks are pruned one after the other, with the inputs that come from the pruned ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pytest_llmperf.engines.transformers.prune.blocks import Block, BlockInputs, linears, matrix
from pytest_llmperf.engines.transformers.prune.calibration import Calibration
from pytest_llmperf.engines.transformers.prune.masks import lowest_in_rows, lowest_share, n_of_m
from pytest_llmperf.engines.transformers.prune.sparsegpt import BLOCK_COLUMNS, DAMPENING, sparsegpt
from pytest_llmperf.errors import LoadError
from pytest_llmperf.strategies.pruned import Pruning


class InputStatistic(Protocol):
    """A statistic of what enters a linear layer, in float32."""

    value: Tensor

    def add(self, inputs: Tensor) -> None:
        """Take in [tokens, features]."""


class SquaredNorm:
    """The squared L2 norm of each input feature over all tokens: [features]."""

    def __init__(self, layer: nn.Module) -> None:
        self.value = torch.zeros(matrix(layer).shape[1], device=matrix(layer).device)

    def add(self, inputs: Tensor) -> None:
        """Take in [tokens, features]."""
        self.value += inputs.float().square().sum(0)


class SecondMoments:
    """The inputs' uncentred second moments X^T X: [features, features]."""

    def __init__(self, layer: nn.Module) -> None:
        features = matrix(layer).shape[1]
        self.value = torch.zeros(features, features, device=matrix(layer).device)

    def add(self, inputs: Tensor) -> None:
        """Take in [tokens, features]."""
        wide = inputs.float()
        self.value.addmm_(wide.t(), wide)


@dataclass(frozen=True)
class Method:
    """A way to prune one layer in place.

    `statistic` is that of the layer's inputs; None where the method looks at the weights alone.
    """

    statistic: type[SquaredNorm | SecondMoments] | None
    parameters: dict[str, str | int | float]


METHODS = {
    "magnitude": Method(None, {"score": "|weight|", "compared_in": "layer"}),
    "wanda": Method(SquaredNorm, {"score": "|weight| x input L2 norm", "compared_in": "row"}),
    "sparsegpt": Method(
        SecondMoments,
        {
            "score": "weight^2 / [H^-1]^2",
            "compared_in": "block",
            "dampening": DAMPENING,
            "block_columns": BLOCK_COLUMNS,
        },
    ),
}


def prune_weights(
    model: Any, blocks: list[Block], pruning: Pruning, text: Calibration | None
) -> None:
    """Prune every linear layer of `blocks`.

    Raises LoadError for inputs that are not finite or columns that do not divide.
    """
    _require_columns(blocks, pruning)
    if text is not None:
        _prune_with_statistics(model, blocks, pruning, text)
        return
    for layer in linears(blocks).values():
        prune_layer(layer, pruning, None)


def _prune_with_statistics(
    model: Any, blocks: list[Block], pruning: Pruning, text: Calibration
) -> None:
    """Prune block by block, each with the inputs that come through the pruned ones."""
    statistic = METHODS[pruning.method].statistic or SquaredNorm
    inputs = BlockInputs(model, blocks, text.rows)
    for index, block in enumerate(blocks):
        with watched(block.linears, statistic) as statistics:
            inputs.run(index, block)
        for name, layer in block.linears.items():
            prune_layer(layer, pruning, finite(statistics[name].value, name, pruning))
        statistics.clear()
        inputs.advance(index, block)


def needs_calibration(method: str) -> bool:
    """Whether the method looks at inputs."""
    return method not in METHODS or METHODS[method].statistic is not None


def prune_layer(layer: nn.Module, pruning: Pruning, statistic: Tensor | None) -> None:
    """Prune one layer in place, computing in float32."""
    weight = matrix(layer)
    if pruning.method == "sparsegpt" and statistic is not None:
        weight.copy_(sparsegpt(weight.float(), statistic, pruning.sparsity, pruning.pattern))
        return
    scores = weight.float().abs()
    if statistic is not None:
        scores.mul_(statistic.sqrt())
    weight.masked_fill_(choose(scores, pruning), 0)


def choose(scores: Tensor, pruning: Pruning) -> Tensor:
    """Return the mask of weights to drop, by scores of [rows, columns].

    They are compared in groups, in each row, or over the whole layer.
    """
    if pruning.pattern is not None:
        return n_of_m(scores, *pruning.pattern)
    if pruning.method == "wanda":
        return lowest_in_rows(scores, pruning.sparsity)
    return lowest_share(scores, pruning.sparsity)


def finite(value: Tensor, name: str, pruning: Pruning) -> Tensor:
    """Return `value`.

    Raises LoadError where a calibration input was not a finite number: its mask would be arbitrary.
    """
    infinite = int((~value.isfinite()).sum())
    if infinite:
        raise LoadError(
            f"pruning {pruning}: the calibration inputs of {name} are not finite "
            f"({infinite} of {value.numel()} statistics). Load the model in a dtype that holds "
            "its activations (bf16, fp32), or check its weights.",
        )
    return value


@contextmanager
def watched(
    layers: Mapping[str, nn.Module], kind: type[SquaredNorm | SecondMoments]
) -> Iterator[dict[str, InputStatistic]]:
    """Take a statistic of the inputs of every layer, by its name, while the context lasts."""
    statistics: dict[str, InputStatistic] = {name: kind(layers[name]) for name in layers}
    handles = [
        layer.register_forward_pre_hook(_adding_to(statistics[name]))
        for name, layer in layers.items()
    ]
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()


def _adding_to(statistic: InputStatistic) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def add_inputs(_layer: nn.Module, args: tuple[Any, ...]) -> None:
        statistic.add(args[0].flatten(0, -2))

    return add_inputs


def _require_columns(blocks: list[Block], pruning: Pruning) -> None:
    """Raise LoadError unless the columns of every layer divide into groups of the pattern."""
    if pruning.pattern is None:
        return
    group = pruning.pattern[1]
    columns = _columns(blocks)
    odd = [name for name, n in columns.items() if n % group]
    if odd:
        raise LoadError(
            f"pruning {pruning}: {len(odd)} linear layers have columns that do not divide by "
            f"{group}, the first is {odd[0]} with {columns[odd[0]]}. "
            f"Ask for a share instead: '{pruning.method}:{pruning.sparsity:g}'.",
        )


def _columns(blocks: list[Block]) -> dict[str, int]:
    return {name: matrix(layer).shape[1] for name, layer in linears(blocks).items()}
