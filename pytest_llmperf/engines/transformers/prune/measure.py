"""What pruning left, counted from the weights of the layers themselves, now."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from pytest_llmperf.core.effective import Pruned
from pytest_llmperf.engines.transformers.prune.blocks import Block, matrix, plain
from pytest_llmperf.engines.transformers.prune.masks import broken_groups
from pytest_llmperf.strategies.pruned import Pruning


@dataclass(frozen=True)
class Count:
    """Of one layer or several: weights before pruning and now, zeros, and of a pattern its groups and the broken ones."""

    before: int
    weights: int
    zeros: int
    groups: int = 0
    broken: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.before + other.before,
            self.weights + other.weights,
            self.zeros + other.zeros,
            self.groups + other.groups,
            self.broken + other.broken,
        )

    @property
    def gone(self) -> float:
        """Share of the weights that are zero or removed."""
        return 1.0 - (self.weights - self.zeros) / self.before


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Pruned layers, so that they can be counted again.

    Held weakly: a layer that is replaced is not kept in memory.

    `first` are the counts just after pruning; they stand for a layer that was packed or replaced
    since. `places` is for each layer where its share is looked at: by itself, or with its block.
    """

    asked: Pruning
    layers: Mapping[str, weakref.ref[nn.Module]]
    first: Mapping[str, Count]
    places: Mapping[str, str]
    left_out: tuple[str, ...]
    stored: str = "dense"
    method: Mapping[str, str | int | float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def now(self) -> Pruned:
        """What is in effect now."""
        places: dict[str, Count] = {}
        for name, ref in self.layers.items():
            place = self.places[name]
            places[place] = places.get(place, Count(0, 0, 0)) + self._count(name, ref())
        total = sum(places.values(), Count(0, 0, 0))
        low = min(places, key=lambda name: places[name].gone)
        high = max(places, key=lambda name: places[name].gone)
        return Pruned(
            asked=str(self.asked),
            layers=len(self.layers),
            weights_before=total.before,
            weights=total.weights,
            zeros=total.zeros,
            lowest=places[low].gone,
            lowest_layer=low,
            highest=places[high].gone,
            highest_layer=high,
            left_out=self.left_out,
            pattern=":".join(map(str, self.asked.pattern)) if self.asked.pattern else None,
            groups=total.groups,
            broken_groups=total.broken,
            stored=self.stored,
            method=dict(self.method),
        )

    def _count(self, name: str, layer: nn.Module | None) -> Count:
        first = self.first[name]
        return (
            first
            if layer is None or not plain(layer)
            else count(matrix(layer), first.before, self.asked)
        )


def count(weight: Tensor, before: int, asked: Pruning) -> Count:
    """Count [rows, columns], of which there were `before` weights."""
    weights = weight.numel()
    zeros = weights - int(weight.count_nonzero())
    if asked.structured:
        return Count(before, weights, 0)
    if asked.pattern is None:
        return Count(before, weights, zeros)
    return Count(
        before, weights, zeros, weights // asked.pattern[1], broken_groups(weight, *asked.pattern)
    )


def sizes(blocks: list[Block]) -> dict[str, int]:
    """Weights of every linear layer of the blocks."""
    return {
        name: matrix(layer).numel() for block in blocks for name, layer in block.linears.items()
    }
