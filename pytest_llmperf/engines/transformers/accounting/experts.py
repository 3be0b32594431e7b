"""The experts of a mixture: how many there are, and how many of them a token goes through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from pytest_llmperf.engines.transformers.quantize.storage import (
    inner_tensors,
    is_linear,
    logical_weights,
)

_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_top_k")
_MATRIX_DIMENSIONS = 2
_FUSED_DIMENSIONS = 3


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The experts of one layer.

    `elements` and `bytes` are of all `count` of them together, of which a token takes `per_token`.
    `are_linear` says that they are linear layers, and not one fused tensor.
    """

    count: int
    per_token: int
    elements: int
    bytes: int
    are_linear: bool

    @property
    def active_share(self) -> float:
        """Share of the weights that one token is multiplied with."""
        return min(1.0, self.per_token / self.count)

    def read_share(self, batch: int) -> float:
        """Share of the experts that `batch` tokens are expected to choose, each by itself."""
        return 1.0 - (1.0 - self.active_share) ** batch


def experts_of(model: Any) -> list[Experts]:
    """Return the experts of each layer; none where the configuration has no number a token."""
    per_token = _per_token(model.config.get_text_config())
    if per_token is None:
        return []
    return [experts for module in model.modules() for experts in _of_module(module, per_token)]


def router_elements(model: nn.Module) -> int:
    """Return the weights of the routers that are no linear layers: each token goes through them."""
    return sum(
        tensor.numel()
        for module in model.modules()
        if "Router" in type(module).__name__ and not is_linear(module)
        for tensor in module.parameters(recurse=False)
        if tensor.dim() == _MATRIX_DIMENSIONS
    )


def _per_token(config: Any) -> int | None:
    counts = (getattr(config, name, None) for name in _PER_TOKEN)
    return next((count for count in counts if isinstance(count, int) and count > 0), None)


def _of_module(module: nn.Module, per_token: int) -> Iterator[Experts]:
    """Yield what a module holds: fused experts, or a list of experts."""
    if "Expert" not in type(module).__name__ and not isinstance(module, nn.ModuleList):
        return
    if isinstance(module, nn.ModuleList):
        if module and "Expert" in type(module[0]).__name__:
            yield _listed(module, per_token)
        return
    tensors = [t for t in module.parameters(recurse=False) if t.dim() >= _FUSED_DIMENSIONS]
    if tensors:
        yield Experts(
            count=len(tensors[0]),
            per_token=per_token,
            elements=sum(tensor.numel() for tensor in tensors),
            bytes=sum(inner.nbytes for tensor in tensors for inner in inner_tensors(tensor)),
            are_linear=False,
        )


def _listed(modules: nn.ModuleList, per_token: int) -> Experts:
    layers = [layer for layer in modules.modules() if is_linear(layer)]
    parameters = [tensor for layer in layers for tensor in layer.parameters(recurse=False)]
    return Experts(
        count=len(modules),
        per_token=per_token,
        elements=sum(map(logical_weights, layers)),
        bytes=sum(inner.nbytes for tensor in parameters for inner in inner_tensors(tensor)),
        are_linear=True,
    )
