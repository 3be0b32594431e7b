"""Every tensor that a model holds, wherever it holds it, and the memory that these occupy.

Parameters and buffers are the usual places. Packed layers, masters in higher precision and code of
a project keep tensors in attributes, lists, dictionaries, hooks and functions besides. Memory is
counted by storages, each once: a view adds nothing, an expanded tensor occupies what it was
expanded from, and a slice holds all of what it was cut from.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from pytest_llmperf.engines.transformers.observed.mapped_files import is_in, mapped_spans
from pytest_llmperf.engines.transformers.quantize.storage import (
    inner_tensors,
    is_linear,
    side_tensors,
    stored_tensors,
)

PARAMETER, BUFFER, ATTRIBUTE = "parameter", "buffer", "attribute"
REST = "rest of a storage"
"""Kinds of TensorGroup; the last is memory that no tensor covers and that is not free."""

_DEPTH = 6
_SEQUENCES = (list, tuple, set, frozenset, deque)
_FOREIGN = frozenset({"torch", "accelerate", "transformers", "peft", "builtins", "functools"})
"""Packages whose objects, modules apart, hold caches, hooks and configurations: no weights."""

_LIBRARIES = _FOREIGN | {"bitsandbytes", "torchao", "compressed_tensors", "pytest_llmperf"}
"""Packages whose functions refer to global tables, which are no weights of the model."""

_HOOKS = frozenset({"_forward_hooks", "_forward_pre_hooks"})
_OF_MODULES = frozenset(vars(nn.Module())) - _HOOKS | {"_hf_hook", "_old_forward"}
"""Attributes that torch and accelerate give to modules, but for the hooks of users."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A plain tensor that a model holds: in which kind of place, by which path, in which module."""

    kind: str
    path: str
    owner: nn.Module
    tensor: Tensor


@dataclass(frozen=True, kw_only=True)
class Occupied:
    """One tensor's part of the memory: `n_bytes` that no tensor before it covers."""

    held: Held
    n_bytes: int


@dataclass
class _Storage:
    """One storage: its size, the tensor that names it, and the spans that tensors cover of it."""

    n_bytes: int
    first: Held
    spans: list[tuple[int, int]] = field(default_factory=list)
    covered: int = 0

    def cover(self, tensor: Tensor) -> int:
        """Add the bytes of a tensor; return how many of them are new."""
        start = int(tensor.storage_offset()) * tensor.element_size()
        end = start + _reach(tensor) * tensor.element_size()
        fresh = end - start - sum(_overlap(span, (start, end)) for span in self.spans)
        new = int(max(0, min(fresh, _distinct_elements(tensor) * tensor.element_size())))
        self.spans = _merged([*self.spans, (start, end)])
        self.covered += new
        return new


def held_tensors(model: nn.Module) -> Iterator[Held]:
    """Yield each plain tensor that a model holds: parameters, then buffers, then all others.

    A tensor that several names share comes several times. What quantized layers keep beside their
    parameters (scales, tables, packed weights) counts as parameters.
    """
    modules = dict(model.named_modules())
    yield from _parameters(modules)
    yield from _registered(modules, "_buffers", BUFFER)
    yield from _Attributes(modules).tensors()


def occupied(tensors: Iterable[Held]) -> list[Occupied]:
    """Return what each tensor adds to the memory, and the rest of storages under `REST`.

    Their sum is that of all storages, each once. Tensors without memory of their own (views of
    earlier ones) are left out; those on the meta device, which wait elsewhere, have 0 bytes. The
    rest of a file that is mapped into memory is not held: nothing reads it.
    """
    storages: dict[object, _Storage] = {}
    parts: list[Occupied] = []
    counted: set[int] = set()
    for held in tensors:
        if held.tensor.is_meta:
            is_new = id(held.tensor) not in counted
            counted.add(id(held.tensor))
            parts += [Occupied(held=held, n_bytes=0)] if is_new else []
            continue
        storage = storages.setdefault(storage_key(held.tensor), _storage_of(held))
        n_bytes = storage.cover(held.tensor)
        parts += [Occupied(held=held, n_bytes=n_bytes)] if n_bytes else []
    return parts + _rests(list(storages.values()))


def storage_key(tensor: Tensor) -> tuple[str, int]:
    """Return what two tensors have in common that lie in one storage.

    A wrapper without storage of its own (quantized weights, a sharded tensor) has its first inner
    tensor's.
    """
    tensor = next(inner_tensors(tensor), tensor)
    if tensor.is_meta or not _has_storage(tensor):
        return str(tensor.device), id(tensor)
    try:
        address = tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # under a transform of torch.func, such as vmap
        return str(tensor.device), -id(tensor)
    return str(tensor.device), address or -id(tensor)


def distinct_spans(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return tensors whose bytes are those of `tensors`, each byte in memory once.

    The first of several tensors in the same memory stands for them; of an expanded one the part
    remains that it was expanded from.
    """
    storages: dict[object, _Storage] = {}
    spans: list[Tensor] = []
    owner = nn.Module()
    for tensor in sorted(tensors, key=lambda one: -_distinct_elements(one) * one.element_size()):
        if tensor.is_meta:
            spans += [] if any(tensor is one for one in spans) else [tensor]
            continue
        held = Held(kind=PARAMETER, path="", owner=owner, tensor=tensor)
        storage = storages.setdefault(storage_key(tensor), _storage_of(held))
        if storage.cover(tensor):
            spans.append(_unexpanded(tensor))
    return spans


def _parameters(modules: Mapping[str, nn.Module]) -> Iterator[Held]:
    yield from _registered(modules, "_parameters", PARAMETER)
    for path, module in modules.items():
        if is_linear(module):
            for tensor in _beside_parameters(module):
                yield Held(kind=PARAMETER, path=path, owner=module, tensor=tensor)


def _beside_parameters(layer: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors of a linear layer that are no parameters, and unpacked ones of torch."""
    yield from side_tensors(layer)
    if not any(True for _ in chain(layer.parameters(), layer.buffers())):
        yield from stored_tensors(layer)


def _registered(modules: Mapping[str, nn.Module], table: str, kind: str) -> Iterator[Held]:
    for path, module in modules.items():
        for name, tensor in getattr(module, table).items():
            if tensor is not None:
                yield from _plain(kind, _joined(path, name), module, tensor)


def _plain(kind: str, path: str, owner: nn.Module, tensor: Tensor) -> Iterator[Held]:
    for inner in inner_tensors(tensor):
        yield Held(kind=kind, path=path, owner=owner, tensor=inner)


class _Attributes:
    """Looks for tensors in whatever the attributes of modules refer to, a few steps deep."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._seen = {id(module) for module in modules.values()}

    def tensors(self) -> Iterator[Held]:
        """Yield the tensors that are in attributes of modules and of their parameters."""
        for path, module in self._modules.items():
            yield from self._of_module(path, module)

    def _of_module(self, path: str, module: nn.Module) -> Iterator[Held]:
        for name, value in _own_attributes(module):
            yield from self._in(value, _joined(path, name), module, _DEPTH)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):  # noqa: SLF001
            for attribute, value in getattr(tensor, "__dict__", {}).items():
                where = f"{_joined(path, name)}.{attribute}"
                yield from self._in(value, where, module, _DEPTH)
            if tensor is not None and tensor.is_leaf and tensor.grad is not None:
                yield from _plain(ATTRIBUTE, f"{_joined(path, name)}.grad", module, tensor.grad)

    def _in(self, value: object, path: str, owner: nn.Module, depth: int) -> Iterator[Held]:
        """Yield the tensors that a value is or refers to."""
        if isinstance(value, Tensor):
            yield from _plain(ATTRIBUTE, path, owner, value)
        elif depth and id(value) not in self._seen and _may_hold(value):
            self._seen.add(id(value))
            if isinstance(value, nn.Module):
                yield from self._of_foreign_module(value, path)
            for name, inner in _inside(value):
                yield from self._in(inner, f"{path}{name}", owner, depth - 1)

    def _of_foreign_module(self, module: nn.Module, path: str) -> Iterator[Held]:
        """Yield the tensors of a module that an attribute holds and no module has registered."""
        inner = {_joined(path, name): child for name, child in module.named_modules()}
        fresh = {name: child for name, child in inner.items() if id(child) not in self._seen}
        fresh[path] = module
        self._seen.update(map(id, inner.values()))
        for name, child in fresh.items():
            for table in ("_parameters", "_buffers"):
                yield from _registered({name: child}, table, ATTRIBUTE)
            yield from self._of_module(name, child)


def _own_attributes(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield what a module has beside torch's own attributes, and what its class shares."""
    for name, value in vars(module).items():
        if name not in _OF_MODULES:
            yield name, value
    for cls in type(module).__mro__:
        if _package(cls) not in _FOREIGN:
            yield from vars(cls).items()


def _may_hold(value: object) -> bool:
    """Whether a value is a container, a closure, or an object of a package that keeps weights."""
    if isinstance(value, (nn.Module, Mapping, *_SEQUENCES, functools.partial)):
        return True
    if isinstance(value, (FunctionType, MethodType)):
        return _package(value) not in _FOREIGN
    has_fields = hasattr(value, "__dict__") or bool(_slots(type(value)))
    return has_fields and _package(type(value)) not in _FOREIGN


def _slots(cls: type) -> list[str]:
    """Return the names of the fields that instances keep in slots."""
    slots = (vars(parent).get("__slots__", ()) for parent in cls.__mro__)
    names = ([slot] if isinstance(slot, str) else slot for slot in slots)
    return [name for name in chain.from_iterable(names) if name not in ("__dict__", "__weakref__")]


def _inside(value: Any) -> Iterator[tuple[str, object]]:
    """Yield what a value refers to, each with what to add to its path."""
    if isinstance(value, nn.Module):
        return
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", inner) for key, inner in list(value.items()))
    elif isinstance(value, _SEQUENCES):
        yield from ((f"[{index}]", inner) for index, inner in enumerate(value))
    elif isinstance(value, (functools.partial, FunctionType, MethodType)):
        yield from _inside_callable(value)
    elif not isinstance(value, type):
        fields = {name: getattr(value, name, None) for name in _slots(type(value))}
        fields |= getattr(value, "__dict__", {})
        yield from ((f".{name}", inner) for name, inner in fields.items())


def _inside_callable(
    value: functools.partial[Any] | FunctionType | MethodType,
) -> Iterator[tuple[str, object]]:
    """Yield arguments of a partial, what a function refers to, or what a method is bound to."""
    if isinstance(value, functools.partial):
        yield from ((f"({index})", inner) for index, inner in enumerate(value.args))
        yield from ((f"({name})", inner) for name, inner in value.keywords.items())
    elif isinstance(value, FunctionType):
        yield from _inside_function(value)
    else:
        yield "", value.__func__
        yield "<self>", value.__self__


def _inside_function(function: FunctionType) -> Iterator[tuple[str, object]]:
    """Yield a function's defaults, the variables of its closure, and the globals that it names."""
    cells = zip(function.__code__.co_freevars, _cells(function), strict=True)
    yield from ((f"<{name}>", _content(cell)) for name, cell in cells)
    defaults = {str(index): value for index, value in enumerate(function.__defaults__ or ())}
    defaults |= function.__kwdefaults__ or {}
    yield from ((f"(={name})", value) for name, value in defaults.items())
    if _package(function) not in _LIBRARIES:
        named = (name for name in function.__code__.co_names if name in function.__globals__)
        yield from ((f"<{name}>", function.__globals__[name]) for name in named)


def _cells(function: FunctionType) -> tuple[Any, ...]:
    return function.__closure__ or ()


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return None


def _package(named: Any) -> str:
    return str(getattr(named, "__module__", "") or "builtins").partition(".")[0]


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _storage_of(held: Held) -> _Storage:
    if not _has_storage(held.tensor):
        return _Storage(_distinct_elements(held.tensor) * held.tensor.element_size(), held)
    return _Storage(held.tensor.untyped_storage().nbytes(), held)


def _has_storage(tensor: Tensor) -> bool:
    """Whether a tensor lies in one storage: sparse and opaque ones do not."""
    return tensor.layout == torch.strided


def _rest_bytes(storage: _Storage) -> int:
    return storage.n_bytes - storage.covered


def _rests(storages: list[_Storage]) -> list[Occupied]:
    """Return what no tensor covers of the storages, but for those that lie in mapped files."""
    larger = [storage for storage in storages if _rest_bytes(storage) > 0]
    files = mapped_spans() if larger else []
    return [_rest(storage) for storage in larger if not _is_of_file(storage, files)]


def _is_of_file(storage: _Storage, files: list[tuple[int, int]]) -> bool:
    tensor = storage.first.tensor
    return tensor.device.type == "cpu" and is_in(files, tensor.data_ptr())


def _rest(storage: _Storage) -> Occupied:
    first = storage.first
    rest = Held(kind=REST, path=first.path, owner=first.owner, tensor=first.tensor)
    return Occupied(held=rest, n_bytes=_rest_bytes(storage))


def _dimensions(tensor: Tensor) -> list[tuple[int, int]]:
    """Return size and stride of the dimensions along which a tensor's elements differ."""
    if not _has_storage(tensor):
        return [(tensor.numel(), 1)]
    return [(n, s) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if s]


def _distinct_elements(tensor: Tensor) -> int:
    """Return how many elements a tensor has in memory."""
    if not tensor.numel():
        return 0
    return functools.reduce(lambda n, dimension: n * dimension[0], _dimensions(tensor), 1)


def _reach(tensor: Tensor) -> int:
    """Return how many elements lie from a tensor's first to its last."""
    if not tensor.numel():
        return 0
    return 1 + sum((n - 1) * stride for n, stride in _dimensions(tensor))


def _unexpanded(tensor: Tensor) -> Tensor:
    if not _has_storage(tensor):
        return tensor
    for dimension, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dimension] > 1:
            tensor = tensor.narrow(dimension, 0, 1)
    return tensor


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> int:
    return max(0, min(one[1], other[1]) - max(one[0], other[0]))


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged
