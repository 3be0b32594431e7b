"""FSDP2: a layer is cut over the ranks once it has its values, and gathered while it is used."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.fsdp import fully_shard

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.transformers.parallel.group import Grid


class LayerSharder:
    """`fully_shard` for layers one by one, and for the rest at the end."""

    def __init__(self, grid: Grid) -> None:
        self._mesh = grid.mesh["fsdp"]

    def layer(self, module: nn.Module) -> None:
        """Keep this rank's part of a layer that has its whole values."""
        fully_shard(module, mesh=self._mesh, reshard_after_forward=True)

    def rest(self, model: Any) -> None:
        """Shard embedding, final norm and head, once tied weights are one.

        After each forward pass they are parts again, like the layers.
        """
        fully_shard(model, mesh=self._mesh, reshard_after_forward=True)


def layer_sharder(plan: LoadPlan, grid: Grid) -> LayerSharder | None:
    """Return what shards the layers; None for a plan without FSDP."""
    return LayerSharder(grid) if plan.fsdp > 1 else None
