"""The decoder blocks of a model, their linear layers, and their inputs.

Inputs go on block by block, through the blocks that were pruned before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pytest_llmperf.errors import LoadError

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a call by position and by name."""


@dataclass(frozen=True)
class Block:
    """A decoder block and its linear layers by their full names, in the order of the module."""

    name: str
    module: nn.Module
    linears: Mapping[str, nn.Module]


def decoder_blocks(model: Any) -> list[Block]:
    """Return the blocks, first to last.

    Raises LoadError for a model in which they cannot be told or that has no linear layers.
    """
    path, modules = _layer_list(model)
    blocks = [_block(f"{path}.{i}", module) for i, module in enumerate(modules)]
    for block in blocks:
        _require_linears(model, block)
    return blocks


def _require_linears(model: Any, block: Block) -> None:
    if not block.linears:
        raise LoadError(
            f"{type(model).__name__} cannot be pruned: block {block.name} holds no linear "
            "layer with plain weights.",
        )


def _layer_list(model: Any) -> tuple[str, nn.ModuleList]:
    """Return path and modules of the first list that is as long as the config says."""
    n_layers = model.config.get_text_config().num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return path, module
    raise LoadError(
        f"{type(model).__name__} cannot be pruned: it holds no list of {n_layers} modules, "
        "the num_hidden_layers of its config, and so its decoder blocks cannot be told. "
        "Leave the pruning part out.",
    )


def _block(path: str, module: nn.Module) -> Block:
    linears = {
        f"{path}.{name}": layer for name, layer in module.named_modules() if _can_be_pruned(layer)
    }
    return Block(path, module, linears)


def _can_be_pruned(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, Conv1D)) and plain(layer)


def linears(blocks: list[Block]) -> dict[str, nn.Module]:
    """Return the linear layers of all blocks by their full names."""
    return {name: layer for block in blocks for name, layer in block.linears.items()}


def left_out(model: nn.Module, blocks: list[Block]) -> tuple[str, ...]:
    """Return the names of linear layers and embeddings that no block has: they are not pruned."""
    pruned = set(linears(blocks).values())
    kinds = (nn.Linear, Conv1D, nn.Embedding)
    modules = model.named_modules()
    return tuple(name for name, m in modules if isinstance(m, kinds) and m not in pruned)


def matrix(layer: nn.Module) -> Tensor:
    """Return the weight as [outputs, inputs], a view that can be written to.

    Conv1D stores it the other way round.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.data.t() if isinstance(layer, Conv1D) else weight.data


def plain(layer: nn.Module) -> bool:
    """Whether the weight is a plain floating-point matrix: not packed, not a tensor subclass."""
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and type(weight.data) is Tensor and _is_matrix(weight)


def _is_matrix(weight: Tensor) -> bool:
    return weight.is_floating_point() and weight.dim() == 2  # noqa: PLR2004


class BlockInputs:
    """The inputs of the blocks: a hidden state for each calibration row, and other arguments.

    All rows are of one length and without padding, so that masks and positions are those of the
    first row.
    """

    def __init__(self, model: Any, blocks: list[Block], rows: Tensor) -> None:
        self._calls = _arguments(model, blocks, rows[:1])
        self._hidden = [_into_first(model, blocks[0], row[None]) for row in rows]

    @torch.no_grad()
    def run(self, index: int, block: Block) -> list[Tensor]:
        """Return the outputs of block `index` for every row, with its weights as they are now."""
        args, kwargs = self._calls[index]
        outputs = (block.module(hidden, *args, **kwargs) for hidden in self._hidden)
        return [_hidden_state(output) for output in outputs]

    def advance(self, index: int, block: Block) -> None:
        """Go on to the next block: its inputs are the outputs of this one."""
        self._hidden = self.run(index, block)


def _hidden_state(output: Any) -> Tensor:
    """Return the hidden state of a block's output, which may be a tuple with other values."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


class _Reached(Exception):
    """Raised in the first block, to end the forward pass there."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


@torch.no_grad()
def _arguments(model: Any, blocks: list[Block], row: Tensor) -> list[_Arguments]:
    """Return each block's arguments beside the hidden state, in a forward pass of one row."""
    calls: dict[int, _Arguments] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _, other_args, other_kwargs = _split(args, kwargs)
        calls[id(module)] = other_args, other_kwargs

    with _before([block.module for block in blocks], note):
        model(input_ids=row, use_cache=False)
    return [calls[id(block.module)] for block in blocks]


@torch.no_grad()
def _into_first(model: Any, block: Block, row: Tensor) -> Tensor:
    """Return the hidden state that enters the first block for one row of ids [1, length]."""

    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(_split(args, kwargs)[0])

    with _before([block.module], stop):
        try:
            model(input_ids=row, use_cache=False)
        except _Reached as reached:
            return reached.hidden
    raise LoadError(
        f"{type(model).__name__} cannot be pruned: its forward never calls {block.name}."
    )


def _split(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Return the hidden state, and the other arguments by position and by name."""
    if args:
        return args[0], args[1:], kwargs
    other_kwargs = dict(kwargs)
    hidden_states = other_kwargs.pop("hidden_states")
    return hidden_states, (), other_kwargs


@contextmanager
def _before(modules: list[nn.Module], hook: Any) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
