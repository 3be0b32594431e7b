"""The experts of a mixture: how many there are, and how many of them a token goes through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pytest_llmperf.engines.transformers.accounting.forward_pass import EverythingOnce, Passed
from pytest_llmperf.engines.transformers.quantize.storage import (
    inner_tensors,
    is_linear,
    logical_weights,
    stored_tensors,
)

_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_top_k",
    "moe_topk",
    "moe_k",
    "top_k_experts",
)
_FUSED_DIMENSIONS = 3


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The experts of one layer.

    `elements` and `bytes` are of all `count` of them together, of which a token takes `per_token`.
    `modules` are theirs, `runs` how often one token goes through the layer.
    """

    count: int
    per_token: int
    elements: int
    bytes: int
    modules: tuple[nn.Module, ...]
    runs: float = 1

    @property
    def active_share(self) -> float:
        """Share of the weights that one token is multiplied with."""
        return min(1.0, self.per_token / self.count)

    @property
    def multiplied(self) -> float:
        """Multiply-adds of one token."""
        return self.runs * self.elements * self.active_share

    def read_share(self, batch: int) -> float:
        """Share of the experts that `batch` tokens are expected to choose, each by itself."""
        return 1.0 - (1.0 - self.active_share) ** batch

    def bytes_read(self, batch: int) -> int:
        """Return the bytes of the experts that the batch's tokens are expected to choose."""
        return round(self.runs * self.bytes * self.read_share(batch))


def experts_of(model: Any, passed: Passed | None = None) -> list[Experts]:
    """Return the experts of each layer; none where nothing says how many a token takes."""
    per_token = _per_token(model.config.get_text_config())
    if per_token is None:
        return []
    ran = EverythingOnce() if passed is None else passed
    return [experts for module in model.modules() for experts in _of_module(module, per_token, ran)]


def _per_token(config: Any) -> int | None:
    counts = (getattr(config, name, None) for name in _PER_TOKEN)
    return next((count for count in counts if isinstance(count, int) and count > 0), None)


def _of_module(module: nn.Module, per_token: int, passed: Passed) -> Iterator[Experts]:
    """Yield what a module holds: fused experts, or a list of experts."""
    if isinstance(module, nn.ModuleList):
        if module and "Expert" in type(module[0]).__name__:
            yield _listed(module, per_token, passed)
        return
    tensors = _fused_tensors(module)
    if tensors:
        matrices = [tensor for tensor in tensors if tensor.dim() >= _FUSED_DIMENSIONS]
        count = len(matrices[0])
        runs_all = passed.rows_of(module) >= count > 1  # each token was repeated for each expert
        yield Experts(
            count=count,
            per_token=count if runs_all else per_token,
            elements=sum(tensor.numel() for tensor in matrices),
            bytes=sum(inner.nbytes for tensor in tensors for inner in inner_tensors(tensor)),
            modules=(module,),
            runs=passed.runs(module),
        )


def _fused_tensors(module: nn.Module) -> list[Tensor]:
    """Return the parameters that hold a row or matrix of each expert; empty for other modules."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or is_linear(module):
        return []
    tensors = list(module.parameters(recurse=False))
    stacks = [tensor for tensor in tensors if tensor.dim() >= _FUSED_DIMENSIONS]
    n_experts = getattr(module, "num_experts", None)
    is_named = "Expert" in type(module).__name__
    if not stacks or not (is_named or n_experts == len(stacks[0])):
        return []
    return [tensor for tensor in tensors if len(tensor) == len(stacks[0])]


def _listed(experts: nn.ModuleList, per_token: int, passed: Passed) -> Experts:
    """Return a list of experts; each token calls as many of them as it takes."""
    layers = [layer for layer in experts.modules() if is_linear(layer)]
    runs = sum(map(passed.runs, experts)) / min(per_token, len(experts))
    return Experts(
        count=len(experts),
        per_token=per_token,
        elements=sum(map(logical_weights, layers)),
        bytes=sum(tensor.nbytes for layer in layers for tensor in stored_tensors(layer)),
        modules=tuple(experts.modules()),
        runs=1 if isinstance(passed, EverythingOnce) else runs,
    )
