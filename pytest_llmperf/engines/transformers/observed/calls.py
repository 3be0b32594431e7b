"""The calls of one forward pass: what multiplies weights in which dtype, and what attends.

A function mode sees every function of torch that Python code calls, and global hooks tell in which
module. What a module says of itself (its class, its configuration, its weights) is not asked.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from pytest_llmperf.engines.transformers.observed.holdings import Held, storage_key
from pytest_llmperf.engines.transformers.quantize.storage import (
    inner_tensors,
    is_linear,
    is_quantized,
    logical_weights,
)
from pytest_llmperf.instruments.layers import dtype_name

PRODUCTS = frozenset(
    (
        *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm"),
        *("addbmm", "addmv", "mv", "einsum", "inner", "tensordot", "_int_mm", "_scaled_mm"),
        *("_grouped_mm", "grouped_mm", "conv1d", "conv2d", "conv_transpose1d"),
    )
)
"""Functions of torch that multiply matrices, by name."""

ATTENTION = re.compile("attention|attn", re.IGNORECASE)
"""What the classes of modules that attend have in their names."""

_ATTENDS = "scaled_dot_product_attention"
_SCORES = frozenset({"softmax", "_softmax"})
_LOOKUPS = frozenset({"embedding", "index_select", "gather", "take", "__getitem__"})
"""What they give is no part of a weight, but rows of a table; a slice is found by its storage."""

_SCORE_DIMENSIONS = 3
_MATRIX_DIMENSIONS = 2
_LEAST_PART = 16
"""A part of a weight that was cast or unpacked is at least the 16th of it; a row is less."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """Products with the weights of one module, in one dtype; `work` counts their weights.

    `output` is the dtype that the module gives out. `is_linear` says that it is a linear layer.
    """

    module: str
    dtype: str
    output: str
    work: int
    is_linear: bool


@dataclass
class Calls:
    """What was seen of a forward pass.

    `modules` are the paths of all modules that were called. `sdpa` and `scores` have, for each
    module that called torch's attention or a softmax over scores, how often. `multiplied` are the
    storages of the held tensors that took part in a product. `most_on_device_bytes` are those of
    parameters that come and go, at the product during which most were there.
    """

    modules: set[str] = field(default_factory=set)
    sdpa: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    scores: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    products: list[Product] = field(default_factory=list)
    multiplied: set[tuple[str, int]] = field(default_factory=set)
    most_on_device_bytes: int = 0


@contextmanager
def watched_calls(
    model: nn.Module, held: Iterable[Held], *, weights_move: bool = False
) -> Iterator[Calls]:
    """Note the calls of the forward passes inside, which run without compiled graphs.

    Of a model whose `weights_move` also note how many are on the device during a product.
    """
    watch = _Watch(model, held)
    watch.moving = list(_owners(model)) if weights_move else []
    hooks = (
        torch_module.register_module_forward_pre_hook(watch.enter),
        torch_module.register_module_forward_hook(watch.leave, always_call=True),
    )
    try:
        with torch.compiler.set_stance("force_eager"), watch:
            yield watch.calls
        watch.finish()
    finally:
        for hook in hooks:
            hook.remove()


class _Watch(TorchFunctionMode):
    """Follows weights through casts and views into the products that they take part in."""

    def __init__(self, model: nn.Module, held: Iterable[Held]) -> None:
        super().__init__()
        self.calls = Calls()
        self.moving: list[nn.Module] = []
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._modules: list[nn.Module] = []
        self._matrices = {storage_key(one.tensor): one.tensor.numel() for one in _matrices(held)}
        self._derived = WeakIdKeyDictionary()
        self._dtypes: list[dict[str, int]] = [defaultdict(int)]

    def enter(self, module: nn.Module, _inputs: object) -> None:
        """Note that a module is called."""
        self.calls.modules.add(self._path(module))
        self._modules.append(module)
        self._dtypes.append(defaultdict(int))

    def leave(self, module: nn.Module, _inputs: object, output: object) -> None:
        """Note what a module gave out, and what it multiplied on the way."""
        if not self._modules or self._modules[-1] is not module:
            return
        self._modules.pop()
        self._note_products(module, self._dtypes.pop(), output)

    def _note_products(self, module: nn.Module, dtypes: dict[str, int], output: object) -> None:
        gives = dtype_name(output) if isinstance(output, Tensor) else ""
        if getattr(module, "belongs_to_adapter", False):
            return
        if is_linear(module) and (is_quantized(module) or not dtypes):
            # A library's own kernel: what it computes in does not show, what comes of it does.
            dtypes = {gives: logical_weights(module)} if gives else {}
        for dtype, work in dtypes.items():
            self.calls.products.append(
                Product(
                    module=self._path(module),
                    dtype=dtype,
                    output=gives if is_linear(module) and gives else dtype,
                    work=work,
                    is_linear=is_linear(module),
                )
            )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").partition(".")[0]  # of torch.ops: mm.default
        operands = [*_tensors(args), *_tensors((kwargs or {}).values())]
        if name == _ATTENDS:
            self.calls.sdpa[self._here()] += 1
        elif name in _SCORES and operands and self._are_scores(operands[0]):
            self.calls.scores[self._here()] += 1
        if name in PRODUCTS:
            self._product(operands, result)
        elif name not in _LOOKUPS:
            self._follow(operands, result)
        return result

    def finish(self) -> None:
        """Note what was multiplied outside of all modules that were called: by the model itself."""
        for dtype, work in self._dtypes[0].items():
            product = Product(module="", dtype=dtype, output=dtype, work=work, is_linear=False)
            self.calls.products.append(product)

    def _product(self, operands: list[Tensor], result: object) -> None:
        """Note a product with weights: its dtype and how many weights took part."""
        if self.moving:
            there = _bytes_on_device(self.moving)
            self.calls.most_on_device_bytes = max(self.calls.most_on_device_bytes, there)
        for operand in operands:
            origin = self._origin(operand)
            if origin is not None and isinstance(result, Tensor) and result.is_floating_point():
                self.calls.multiplied.add(origin)
                self._dtypes[-1][dtype_name(result)] += operand.numel()

    def _follow(self, operands: list[Tensor], result: object) -> None:
        """Remember which weights a tensor was made of by a cast, a view or unpacking."""
        if not isinstance(result, Tensor):
            return
        for operand in operands:
            origin = self._origin(operand)
            if origin is not None and result.numel() * _LEAST_PART >= self._matrices[origin]:
                self._derived[result] = origin
                return

    def _origin(self, tensor: Tensor) -> tuple[str, int] | None:
        """Return the storage of the matrix that a tensor is, or was made of."""
        derived: Any = self._derived
        origin: tuple[str, int] | None = derived.get(tensor)
        if origin is not None:
            return origin
        keys = (storage_key(inner) for inner in inner_tensors(tensor))
        return next((key for key in keys if key in self._matrices), None)

    def _are_scores(self, tensor: Tensor) -> bool:
        """Whether a tensor has a score for each head and two positions; a router's has fewer."""
        if tensor.dim() > _SCORE_DIMENSIONS:
            return True
        in_attention = self._modules and ATTENTION.search(type(self._modules[-1]).__name__)
        return tensor.dim() == _SCORE_DIMENSIONS and bool(in_attention)

    def _here(self) -> str:
        return self._path(self._modules[-1]) if self._modules else ""

    def _path(self, module: nn.Module) -> str:
        return self._paths.get(id(module)) or type(module).__name__


def _owners(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that have parameters of their own."""
    return (module for module in model.modules() if module._parameters)  # noqa: SLF001


def _bytes_on_device(modules: list[nn.Module]) -> int:
    parameters = {
        id(parameter): parameter.nbytes
        for module in modules
        for parameter in module.parameters(recurse=False)
        if not parameter.is_meta
    }
    return sum(parameters.values())


def _matrices(held: Iterable[Held]) -> Iterator[Held]:
    return (one for one in held if one.tensor.dim() >= _MATRIX_DIMENSIONS)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
