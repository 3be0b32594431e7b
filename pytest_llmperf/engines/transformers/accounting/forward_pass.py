"""What one token's forward pass goes through, seen by hooks and by torch's functions.

A module counts as often as it runs, one that a text never enters not at all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from pytest_llmperf.engines.outputs.decoding import eager
from pytest_llmperf.engines.transformers.quantize.storage import is_linear, logical_weights

_MATRIX_DIMENSIONS = 2

_PRODUCTS: frozenset[Any] = frozenset(
    {
        nn.functional.linear,
        torch.addmm,
        torch.baddbmm,
        torch.bmm,
        torch.einsum,
        torch.matmul,
        torch.mm,
        Tensor.__matmul__,
        Tensor.__rmatmul__,
        Tensor.bmm,
        Tensor.matmul,
        Tensor.mm,
    }
)
"""Functions that multiply matrices: each value of a matrix is used in one multiply-add a row."""

_PLACE_OF_LEFT: dict[Any, int] = {torch.addmm: 1, torch.baddbmm: 1, Tensor.__rmatmul__: 1}

_SAME_VALUES: frozenset[Any] = frozenset(
    {
        Tensor.__getitem__,
        Tensor.contiguous,
        Tensor.detach,
        Tensor.float,
        Tensor.permute,
        Tensor.reshape,
        Tensor.squeeze,
        Tensor.t,
        Tensor.to,
        Tensor.transpose,
        Tensor.type,
        Tensor.unsqueeze,
        Tensor.view,
    }
)
"""Functions that return a tensor's own values, in another shape or dtype."""


class Passed(Protocol):
    """What a forward pass of one token goes through."""

    def runs(self, module: nn.Module) -> int:
        """Return how often the module runs."""

    def rows_of(self, module: nn.Module) -> int:
        """Return how many rows the module is given in one run."""

    def reads(self, module: nn.Module, tensor: Tensor) -> int:
        """Return how often a tensor that the module itself holds is read."""

    def multiplied(self, layer: nn.Module) -> float:
        """Return the multiply-adds that a linear layer does."""

    def multiplied_outside(self, *, of: Iterable[nn.Module]) -> float:
        """Return the multiply-adds with the matrices of these modules, done by other code."""


class EverythingOnce:
    """Every module runs once: what is taken for sharded and offloaded models."""

    def runs(self, _module: nn.Module) -> int:
        """Return 1."""
        return 1

    def rows_of(self, _module: nn.Module) -> int:
        """Return 1."""
        return 1

    def reads(self, _module: nn.Module, _tensor: Tensor) -> int:
        """Return 1."""
        return 1

    def multiplied(self, layer: nn.Module) -> float:
        """Return the layer's weights."""
        return logical_weights(layer)

    def multiplied_outside(self, *, of: Iterable[nn.Module]) -> float:
        """Return the values of all routers' matrices: each token goes through them."""
        routers = [m for m in of if "Router" in type(m).__name__ and not is_linear(m)]
        tensors = [tensor for router in routers for tensor in router.parameters(recurse=False)]
        return sum(tensor.numel() for tensor in tensors if tensor.dim() == _MATRIX_DIMENSIONS)


@dataclass
class OneToken:
    """What was seen of one token.

    `rows` are the rows that each module was given; `products` the multiply-adds with matrices
    outside of the layer that is called, by the tensor's id; `touched` the tensors that anything
    was asked of.
    """

    calls: Counter[nn.Module] = field(default_factory=Counter)
    rows: Counter[nn.Module] = field(default_factory=Counter)
    products: Counter[int] = field(default_factory=Counter)
    touched: set[int] = field(default_factory=set)

    def runs(self, module: nn.Module) -> int:
        """Return how often the module's forward was called."""
        return self.calls[module]

    def rows_of(self, module: nn.Module) -> int:
        """Return the rows of its first argument, on average over its calls."""
        return self.rows[module] // max(1, self.calls[module])

    def reads(self, module: nn.Module, tensor: Tensor) -> int:
        """Return the calls of the module; 1 where other code took the tensor from it."""
        if getattr(module, "belongs_to_adapter", False):
            return 1  # which adapter is in force changes; who switches them subtracts the others
        return self.calls[module] or int(id(tensor) in self.touched)

    def multiplied(self, layer: nn.Module) -> float:
        """Return rows times weights; what other code did with the weight is counted there."""
        return self.rows[layer] * logical_weights(layer)

    def multiplied_outside(self, *, of: Iterable[nn.Module]) -> float:
        """Return what the products with these modules' own matrices were."""
        tensors = (tensor for module in of for tensor in module.parameters(recurse=False))
        return sum(self.products[id(tensor)] for tensor in tensors)


def one_token(model: Any) -> OneToken:
    """Run one token through the model, eagerly and without a cache, and return what it does."""
    passed = OneToken()
    token = torch.zeros((1, 1), dtype=torch.long, device=_device_of(model))
    with torch.no_grad(), _counted(model, passed), _Functions(model, passed):
        eager(model)(input_ids=token, use_cache=False)
    return passed


def _device_of(model: Any) -> torch.device:
    device: torch.device = model.get_input_embeddings().weight.device
    return device


@contextmanager
def _counted(model: nn.Module, passed: OneToken) -> Iterator[None]:
    """Count the calls of all modules, and the rows that each is given."""

    def note(module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        passed.calls[module] += 1
        passed.rows[module] += _rows(next(iter((*args, *named.values())), None))

    with ExitStack() as handles:
        for module in model.modules():
            handle: RemovableHandle = module.register_forward_pre_hook(note, with_kwargs=True)
            handles.callback(handle.remove)
        yield


def _rows(value: object) -> int:
    return value.numel() // value.shape[-1] if isinstance(value, Tensor) and value.dim() else 1


class _Functions(TorchFunctionMode):
    """Sees which parameters functions take, and what is multiplied with them."""

    def __init__(self, model: nn.Module, passed: OneToken) -> None:
        super().__init__()
        self._passed = passed
        self._of_linear: dict[int, list[nn.Module]] = defaultdict(list)  # several where it is tied
        for module in filter(is_linear, model.modules()):
            for tensor in module.parameters(recurse=False):
                self._of_linear[id(tensor)].append(module)
        self._origin = {id(tensor): id(tensor) for tensor in model.parameters()}
        self._alive: list[Tensor] = []  # an id is used again for a tensor that is gone

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = (*args, *(kwargs or {}).values())
        known = [tensor for tensor in _flat(given) if id(tensor) in self._origin]
        if known and getattr(func, "__name__", "") != "__get__":
            self._note(func, known, args, result)
        return result

    def _note(
        self, func: Callable[..., Any], known: list[Tensor], args: tuple[Any, ...], result: Any
    ) -> None:
        if not isinstance(result, Tensor | tuple):
            return  # a question about its size or dtype
        self._passed.touched.update(self._origin[id(tensor)] for tensor in known)
        matrix = next((tensor for tensor in known if tensor.dim() > 1), known[0])
        origin = self._origin[id(matrix)]
        if func in _SAME_VALUES and isinstance(result, Tensor):
            self._origin[id(result)] = origin
            self._alive.append(result)
        elif func in _PRODUCTS and not self._is_own_call(origin):
            self._passed.products[origin] += _multiply_adds(func, args, result)

    def _is_own_call(self, origin: int) -> bool:
        """Whether a linear layer that was called multiplies, whose rows are counted."""
        return any(self._passed.calls[layer] for layer in self._of_linear.get(origin, ()))


def _multiply_adds(func: Callable[..., Any], args: tuple[Any, ...], result: Any) -> int:
    """Return the multiply-adds of a product: one for each value of the result and inner index."""
    left = args[_PLACE_OF_LEFT.get(func, 0)]
    if func is torch.einsum:
        return max(tensor.numel() for tensor in _flat(args))
    return int(result.numel() * left.shape[-1])


def _flat(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _flat(value)
