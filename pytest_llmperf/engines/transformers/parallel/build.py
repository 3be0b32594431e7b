"""Loads one model onto several ranks.

Every module is cut as soon as it is filled, so that no rank ever holds the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import nn

from pytest_llmperf.core.effective import Shard
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.loading.checkpoint import load_errors
from pytest_llmperf.engines.refusals.parallel import does_not_divide
from pytest_llmperf.engines.transformers.checkpoint import SourceModel
from pytest_llmperf.engines.transformers.parallel.anatomy import (
    Anatomy,
    anatomy,
    bytes_of,
    is_tied,
    own_bytes,
)
from pytest_llmperf.engines.transformers.parallel.group import Grid
from pytest_llmperf.engines.transformers.parallel.pipeline import Stage, stage
from pytest_llmperf.engines.transformers.parallel.sharded import LayerSharder, layer_sharder
from pytest_llmperf.engines.transformers.parallel.skeleton import Skeleton, skeleton
from pytest_llmperf.engines.transformers.parallel.tensor import TensorCut, tensor_cut
from pytest_llmperf.errors import LoadError
from pytest_llmperf.instruments.ranks import device_identity
from pytest_llmperf.instruments.torch_runtime import DeviceRuntime


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What this rank must hold of a model, by the way it is cut; see core.effective.Shard.

    `grid` is this rank's place.
    """

    grid: Grid
    whole_bytes: int
    stage_bytes: int
    kept_bytes: int
    largest_layer_bytes: int
    load_peak_bytes: int | None
    holds: str
    left_whole: dict[str, int] = field(default_factory=dict)
    larger: tuple[str, ...] = ()

    def shard(self, held_bytes: int) -> Shard:
        """Return the row of this rank, with the bytes that it holds now."""
        return Shard(
            rank=self.grid.rank,
            device=device_identity(self.grid.device),
            backend=self.grid.backend,
            bytes=held_bytes,
            whole_bytes=self.whole_bytes,
            stage_bytes=self.stage_bytes,
            kept_bytes=self.kept_bytes,
            holds=self.holds,
            largest_layer_bytes=self.largest_layer_bytes,
            load_peak_bytes=self.load_peak_bytes,
            left_whole=self.left_whole,
            larger=self.larger,
        )


def is_cut(plan: LoadPlan) -> bool:
    """Whether ranks hold parts of the model, and not a whole one each."""
    return plan.tp * plan.fsdp * plan.pp > 1


def read(plan: LoadPlan, device: torch.device, grid: Grid) -> tuple[SourceModel, Cut]:
    """Read the part of this rank. Raises LoadError where the model cannot be cut so."""
    with DeviceRuntime(device).peak_memory() as region:
        bare = skeleton(plan, device)
        with load_errors(plan, f"its part on rank {grid.rank}"):
            _require_divisible(plan, bare.model)
            cut = _Builder(bare, plan, grid).build()
    source = SourceModel(
        model=bare.model,
        tokenizer=bare.tokenizer,
        content_hash=bare.content_hash,
        checkpoint_dtype=bare.checkpoint_dtype,
        not_read=bare.not_read,
    )
    return source, replace(cut, load_peak_bytes=region.peak)


def replica_cut(plan: LoadPlan, model: nn.Module, grid: Grid) -> Cut:
    """Describe a rank that holds a whole model, one of several."""
    size = own_bytes(model)
    return Cut(
        grid=grid,
        whole_bytes=size,
        stage_bytes=size,
        kept_bytes=0,
        largest_layer_bytes=0,
        load_peak_bytes=None,
        holds=f"replica {grid.place('dp') + 1} of {plan.dp}",
    )


def _require_divisible(plan: LoadPlan, model: Any) -> None:
    reason = does_not_divide(plan, model.config.get_text_config().to_dict())
    if reason is not None:
        raise LoadError(reason)


class _Builder:
    """Goes once over the modules, in the order that a single device fills them."""

    def __init__(self, bare: Skeleton, plan: LoadPlan, grid: Grid) -> None:
        self._model: Any = bare.model
        self._values = bare.values
        self._plan, self._grid = plan, grid
        self._anatomy: Anatomy = anatomy(bare.model)
        self._stage: Stage | None = stage(bare.model, plan, grid, self._anatomy)
        self._tensor: TensorCut | None = tensor_cut(bare.model, plan, grid)
        self._sharder: LayerSharder | None = layer_sharder(plan, grid)
        self._tied = is_tied(bare.model)

    def build(self) -> Cut:
        """Fill, cut, tie, and shard the rest. The peak of memory is not known here."""
        cut = self._planned_cut()
        self._fill()
        if self._stage is not None:
            self._stage.finish()
        self._tie()
        if self._tensor is not None:
            self._tensor.finish()
            cut = replace(cut, kept_bytes=self._tensor.kept_bytes)
        if self._sharder is not None:
            self._sharder.rest(self._model)
        return cut

    def _planned_cut(self) -> Cut:
        """Say what this rank must hold, from the model while it lies on the meta device."""
        layers = self._model.get_submodule(self._anatomy.layers).children()
        return Cut(
            grid=self._grid,
            whole_bytes=own_bytes(self._model),
            stage_bytes=self._stage_bytes(),
            kept_bytes=0,
            largest_layer_bytes=max(map(own_bytes, layers)),
            load_peak_bytes=None,
            holds=self._holds(),
        )

    def _fill(self) -> None:
        """Fill and cut every module, and shard each layer after its last module."""
        modules = list(self._model.named_modules())
        last_path_of = {self._anatomy.layer(path): path for path, _ in modules}
        with self._values.reading():
            for path, module in modules:
                self._fill_module(module, path)
                layer = self._anatomy.layer(path)
                if layer in self._own_layers() and last_path_of[layer] == path:
                    self._shard(f"{self._anatomy.layers}.{layer}")

    def _shard(self, path: str) -> None:
        if self._sharder is not None:
            self._sharder.layer(self._model.get_submodule(path))

    def _fill_module(self, module: nn.Module, path: str) -> None:
        if self._stage is not None and not self._stage.keeps(path):
            self._values.skip(module, path)
            return
        self._values.fill(module, path)
        if self._tensor is not None:
            self._tensor.after_fill(module, path)

    def _own_layers(self) -> range:
        return range(self._anatomy.n_layers) if self._stage is None else self._stage.layers

    def _stage_bytes(self) -> int:
        """Return the bytes of this stage on one device, where tied tensors are one."""
        return bytes_of(
            tensor
            for path, module in self._model.named_modules()
            if self._stage is None or self._stage.keeps(path)
            for tensor in chain(module.parameters(recurse=False), module.buffers(recurse=False))
        )

    def _tie(self) -> None:
        model = self._model
        if self._stage is None:
            model.tie_weights()
        elif self._tied and self._stage.last:
            model.get_output_embeddings().weight = model.get_input_embeddings().weight

    def _holds(self) -> str:
        """Return a text that names this rank's part."""
        sizes = {axis: getattr(self._plan, axis) for axis in ("dp", "tp", "fsdp")}
        parts = [
            f"{axis} {self._grid.place(axis) + 1} of {size}"
            for axis, size in sizes.items()
            if size > 1
        ]
        if self._plan.pp > 1:
            layers = self._own_layers()
            parts.append(f"layers {layers.start} to {layers.stop - 1} of {self._anatomy.n_layers}")
        return ", ".join(parts)
