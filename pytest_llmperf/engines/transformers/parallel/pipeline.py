"""Pipeline parallelism: consecutive layers on each rank, hidden states sent on, logits for all.

Every rank goes through `generate` with the same inputs and the same logits, so that all choose the
same tokens. Each rank has the KV cache of its own layers, numbered from 0.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.transformers.parallel.anatomy import Anatomy, is_tied
from pytest_llmperf.engines.transformers.parallel.group import Grid
from pytest_llmperf.errors import LoadError


class Absent(nn.Module):
    """Stands in for a module that another rank has. `weight` is empty, and no parameter."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.num_embeddings = rows
        self.weight = torch.empty(0)

    def forward(self, *_inputs: object) -> Tensor:
        """Raise RuntimeError: only the rank that has the module calls it."""
        raise RuntimeError("a module of another pipeline stage was called")


class Stage:
    """One rank's consecutive layers, and the modules before and behind them."""

    def __init__(self, model: Any, grid: Grid, anatomy: Anatomy) -> None:
        self._model = model
        self._grid = grid
        self._anatomy = anatomy
        stages, place = grid.along("pp"), grid.place("pp")
        self.first, self.last = place == 0, place == stages - 1
        self.layers = _layers_of_stage(anatomy.n_layers, place, stages)
        # Whether this rank has the module, by path; tied weights are on the first and last rank.
        self._ends = {anatomy.embedding: self.first or (self.last and is_tied(model))}
        self._ends |= dict.fromkeys((anatomy.head, *anatomy.norms), self.last)

    def keeps(self, path: str) -> bool:
        """Whether this rank has the module.

        Containers, and tables that are computed, are on every rank.
        """
        layer = self._anatomy.layer(path)
        if layer is not None:
            return layer in self.layers
        return all(
            is_here
            for end, is_here in self._ends.items()
            if path == end or path.startswith(end + ".")
        )

    def finish(self) -> None:
        """Drop the modules of other ranks, and exchange hidden states with those ranks."""
        self._drop_absent_ends()
        self._drop_absent_layers()
        model = self._model
        model.forward = StageForward(model, self._grid, first=self.first, last=self.last).forward

    def _drop_absent_ends(self) -> None:
        rows = int(self._model.config.get_text_config().vocab_size)
        for path, is_here in self._ends.items():
            if not is_here:
                is_norm = path in self._anatomy.norms
                _replace(self._model, path, nn.Identity() if is_norm else Absent(rows))

    def _drop_absent_layers(self) -> None:
        """Leave this rank's layers in the model, and number them from 0."""
        path = self._anatomy.layers
        layers = self._model.get_submodule(path)
        own_layers = nn.ModuleList([layers[i] for i in self.layers])
        _replace(self._model, path, own_layers)
        _number_from_zero(own_layers, self.layers.start)
        _renumber(self._model.config.get_text_config(), self.layers)


class StageForward:
    """The forward pass of one stage, with the signature of the model's own."""

    def __init__(self, model: Any, grid: Grid, *, first: bool, last: bool) -> None:
        self._model = model
        self._grid = grid
        self._first, self._last = first, last
        self._group = grid.group("pp")
        self._ranks = grid.neighbours
        self._place = grid.place("pp")
        self._own = type(model).forward
        config = model.config.get_text_config()
        self._hidden, self._vocab = int(config.hidden_size), int(config.vocab_size)
        self._dtype = model.dtype
        self._checked = first

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **_other: object,
    ) -> CausalLMOutputWithPast:
        """Take ids [batch, n] and return logits [batch, kept, vocab], on every rank."""
        common: dict[str, Any] = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }
        entry = (
            {"input_ids": input_ids}
            if self._first
            else {"inputs_embeds": self._received(input_ids)}
        )
        if self._last:
            with self._unchanged(entry.get("inputs_embeds")):
                out = self._own(self._model, **entry, **common, logits_to_keep=logits_to_keep)
            logits, cache = out.logits.contiguous(), out.past_key_values
        else:
            with self._unchanged(entry.get("inputs_embeds")):
                out = self._model.base_model(**entry, **common)
            dist.send(
                out.last_hidden_state.contiguous(),
                dst=self._ranks[self._place + 1],
                group=self._group,
            )
            logits, cache = self._empty_logits(input_ids, logits_to_keep), out.past_key_values
        dist.broadcast(logits, src=self._ranks[-1], group=self._group)
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)

    def _received(self, ids: Tensor) -> Tensor:
        hidden = torch.empty((*ids.shape, self._hidden), dtype=self._dtype, device=ids.device)
        dist.recv(hidden, src=self._ranks[self._place - 1], group=self._group)
        return hidden

    def _empty_logits(self, ids: Tensor, keep: int | Tensor) -> Tensor:
        n = keep.numel() if isinstance(keep, Tensor) else min(keep or ids.shape[1], ids.shape[1])
        return torch.empty((ids.shape[0], n, self._vocab), dtype=self._dtype, device=ids.device)

    def _unchanged(self, hidden: Tensor | None) -> _FirstInput:
        """In the first call, check that `hidden` enters the first layer."""
        check = None if self._checked else hidden
        self._checked = True
        return _FirstInput(self._model, check)


class _FirstInput:
    """Checks that the first layer of a stage gets the tensor that the stage received.

    A model that scales its embeddings would do so again in each stage.
    """

    def __init__(self, model: Any, hidden: Tensor | None) -> None:
        self._model = model
        self._hidden = hidden
        self._handle: Any = None

    def __enter__(self) -> None:
        if self._hidden is not None:
            children = self._model.base_model.children()
            stack = next(child for child in children if isinstance(child, nn.ModuleList))
            self._handle = stack[0].register_forward_pre_hook(self._check)

    def __exit__(self, *_error: object) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _check(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert self._hidden is not None  # noqa: S101 - no hook without it
        if inputs[0].data_ptr() != self._hidden.data_ptr():
            raise LoadError(
                f"{type(self._model).__name__} changes the embeddings before its first layer, "
                "which every stage of a pipeline would do again. Take 'own-tpN' or 'fsdpN'.",
            )


def stage(model: Any, plan: LoadPlan, grid: Grid, anatomy: Anatomy) -> Stage | None:
    """Return the stage of this rank; None for a plan without a pipeline.

    Raises LoadError for a model with more than an embedding, layers and a norm, or with fewer
    layers than stages.
    """
    if plan.pp == 1:
        return None
    _require_one_norm(model, anatomy)
    if anatomy.n_layers < plan.pp:
        raise LoadError(
            f"own-pp{plan.pp} has more devices than {type(model).__name__} has layers: "
            f"{anatomy.n_layers}."
        )
    return Stage(model, grid, anatomy)


def _require_one_norm(model: Any, anatomy: Anatomy) -> None:
    if len(anatomy.norms) != 1:
        raise LoadError(
            f"{type(model).__name__} has {len(anatomy.norms)} modules with weights beside its "
            f"embedding and layers ({', '.join(anatomy.norms)}); a pipeline knows one, the final "
            "norm. Take 'own-tpN' or 'fsdpN'.",
        )


def _layers_of_stage(n_layers: int, place: int, stages: int) -> range:
    return range(n_layers * place // stages, n_layers * (place + 1) // stages)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, name, module)


def _number_from_zero(layers: nn.ModuleList, first: int) -> None:
    """Take `first` off the layer numbers of all modules, which index the KV cache."""
    module: Any
    for module in layers.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.layer_idx -= first


def _renumber(config: Any, layers: range) -> None:
    """Set the config to the layers of this stage: caches are made from it, a layer each."""
    config.num_hidden_layers = len(layers)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = [kinds[i] for i in layers]
