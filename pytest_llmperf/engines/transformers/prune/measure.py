"""What pruning has in effect, counted from the weights that the layers hold."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from operator import add

from torch import Tensor, nn

from pytest_llmperf.core.effective import Pruned
from pytest_llmperf.engines.transformers.prune.blocks import Block, linears, matrix, plain
from pytest_llmperf.engines.transformers.prune.masks import broken_groups
from pytest_llmperf.strategies.pruned import Pruning


@dataclass(frozen=True)
class Count:
    """The weights of one layer or several, before pruning and now, and the zeros among them.

    Where there is a pattern: its groups, and those that break it.
    """

    before: int
    weights: int
    zeros: int
    groups: int = 0
    broken: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(*map(add, astuple(self), astuple(other)))

    @property
    def sparsity(self) -> float:
        """Return the share of the weights that are zero or removed."""
        return 1.0 - (self.weights - self.zeros) / self.before


@dataclass(frozen=True, kw_only=True)
class PrunedLayers:
    """The layers that were pruned, so that they can be counted again.

    They are held weakly: a layer that is replaced is not kept in memory. `counts` are those just
    after pruning, which stand for a layer that was packed or replaced since. `places` says for each
    layer where its share is counted: by itself, or with its block.
    """

    pruning: Pruning
    layers: Mapping[str, weakref.ref[nn.Module]]
    counts: Mapping[str, Count]
    places: Mapping[str, str]
    left_out: tuple[str, ...]
    stored: str = "dense"
    method: Mapping[str, str | int | float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def report(self) -> Pruned:
        """Count the layers as they are now, and report what is in effect."""
        by_place = self._counts_by_place()
        total = sum(by_place.values(), Count(0, 0, 0))
        shares = {place: place_count.sparsity for place, place_count in by_place.items()}
        lowest, highest = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
        return Pruned(
            asked=str(self.pruning),
            layers=len(self.layers),
            weights_before=total.before,
            weights=total.weights,
            zeros=total.zeros,
            lowest=shares[lowest],
            lowest_layer=lowest,
            highest=shares[highest],
            highest_layer=highest,
            left_out=self.left_out,
            pattern=self._pattern(),
            groups=total.groups,
            broken_groups=total.broken,
            stored=self.stored,
            method=dict(self.method),
        )

    def _pattern(self) -> str | None:
        pattern = self.pruning.pattern
        return ":".join(map(str, pattern)) if pattern else None

    def _counts_by_place(self) -> dict[str, Count]:
        by_place: dict[str, Count] = {}
        for name, layer in self.layers.items():
            place = self.places[name]
            by_place[place] = by_place.get(place, Count(0, 0, 0)) + self._count(name, layer())
        return by_place

    def _count(self, name: str, layer: nn.Module | None) -> Count:
        after_pruning = self.counts[name]
        if layer is None or not plain(layer):
            return after_pruning
        return count(matrix(layer), after_pruning.before, self.pruning)


def count(weight: Tensor, before: int, pruning: Pruning) -> Count:
    """Count [rows, columns], which had `before` weights before pruning."""
    weights = weight.numel()
    if pruning.structured:
        return Count(before, weights, 0)
    zeros = weights - int(weight.count_nonzero())
    if pruning.pattern is None:
        return Count(before, weights, zeros)
    groups = weights // pruning.pattern[1]
    return Count(before, weights, zeros, groups, broken_groups(weight, *pruning.pattern))


def sizes(blocks: list[Block]) -> dict[str, int]:
    """Return the number of weights of every linear layer of the blocks."""
    return {name: matrix(layer).numel() for name, layer in linears(blocks).items()}
