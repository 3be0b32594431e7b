"""Weights set to zero where they are: magnitude, Wanda and SparseGPT, block by block with the inputs of what was pruned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pytest_llmperf.engines.transformers.prune.blocks import Block, BlockInputs, matrix
from pytest_llmperf.engines.transformers.prune.calibration import Calibration
from pytest_llmperf.engines.transformers.prune.masks import lowest, lowest_in_rows, n_of_m
from pytest_llmperf.engines.transformers.prune.sparsegpt import BLOCK_COLUMNS, DAMPENING, sparsegpt
from pytest_llmperf.errors import LoadError
from pytest_llmperf.strategies.pruned import Pruning


class Seen(Protocol):
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
    """A way to prune one layer in place, from the statistic of its inputs; `seen` None: it looks at the weights alone."""

    seen: type[SquaredNorm | SecondMoments] | None
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
    model: Any, blocks: list[Block], asked: Pruning, calibrated: Calibration | None
) -> None:
    """Prune every linear layer of `blocks`.

    Raises LoadError for inputs that are not finite or columns that do not divide.
    """
    _require_columns(blocks, asked)
    if calibrated is None:
        for layer in (layer for block in blocks for layer in block.linears.values()):
            prune_layer(layer, asked, None)
        return
    inputs = BlockInputs(model, blocks, calibrated.rows)
    for index, block in enumerate(blocks):
        with watched(block.linears, METHODS[asked.method].seen or SquaredNorm) as seen:
            inputs.run(index, block)
        for name, layer in block.linears.items():
            prune_layer(layer, asked, finite(seen[name].value, name, asked))
        seen.clear()
        inputs.advance(index, block)


def needs_calibration(method: str) -> bool:
    """Whether the method looks at inputs."""
    return method not in METHODS or METHODS[method].seen is not None


def prune_layer(layer: nn.Module, asked: Pruning, seen: Tensor | None) -> None:
    """Prune one layer in place, computing in float32."""
    weight = matrix(layer)
    if asked.method == "sparsegpt" and seen is not None:
        weight.copy_(sparsegpt(weight.float(), seen, asked.sparsity, asked.pattern))
        return
    scores = weight.float().abs()
    if seen is not None:
        scores.mul_(seen.sqrt())
    weight.masked_fill_(choose(scores, asked), 0)


def choose(scores: Tensor, asked: Pruning) -> Tensor:
    """The mask of weights to drop, by scores of [rows, columns]: in groups, in each row, or over the whole layer."""
    if asked.pattern is not None:
        return n_of_m(scores, *asked.pattern)
    if asked.method == "wanda":
        return lowest_in_rows(scores, asked.sparsity)
    return lowest(scores, round(scores.numel() * asked.sparsity))


def finite(value: Tensor, name: str, asked: Pruning) -> Tensor:
    """`value`, or LoadError where a calibration input was not a finite number: its mask would be arbitrary."""
    wrong = int((~value.isfinite()).sum())
    if wrong:
        raise LoadError(
            f"pruning {asked}: the calibration inputs of {name} are not finite ({wrong} of {value.numel()} statistics). "
            "Load the model in a dtype that holds its activations (bf16, fp32), or check its weights.",
        )
    return value


@contextmanager
def watched(linears: Any, kind: type[SquaredNorm | SecondMoments]) -> Iterator[dict[str, Seen]]:
    """A statistic of the inputs of every layer, by its name, while the context lasts."""
    seen: dict[str, Seen] = {name: kind(layer) for name, layer in linears.items()}
    handles = [
        layer.register_forward_pre_hook(
            lambda _layer, args, into=seen[name]: into.add(args[0].flatten(0, -2))
        )
        for name, layer in linears.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _require_columns(blocks: list[Block], asked: Pruning) -> None:
    if asked.pattern is None:
        return
    group = asked.pattern[1]
    odd = {
        name: matrix(m).shape[1]
        for b in blocks
        for name, m in b.linears.items()
        if matrix(m).shape[1] % group
    }
    if odd:
        name, columns = next(iter(odd.items()))
        raise LoadError(
            f"pruning {asked}: {len(odd)} linear layers have columns that do not divide by {group}, the first is {name} with "
            f"{columns}. Ask for a share instead: '{asked.method}:{asked.sparsity:g}'.",
        )
