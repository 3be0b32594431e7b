"""How much of a step runs inside compiled graphs, by the weights that these graphs multiply with.

A weight that a graph gets, scales or unpacks and gives out again is not multiplied there.

A graph is what dynamo hands to the compiler. What breaks out of it (a disabled function, a library
that dynamo cannot follow, a frame that was compiled too often) runs as if nothing was compiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
import torch._dynamo.utils as dynamo
from torch import Tensor, nn

from pytest_llmperf.engines.transformers.observed.calls import PRODUCTS, Calls
from pytest_llmperf.engines.transformers.observed.holdings import storage_key
from pytest_llmperf.engines.transformers.quantize.storage import (
    inner_tensors,
    is_linear,
    stored_tensors,
)

Key = tuple[str, int]
Matrices = Mapping[Key, int]
"""The elements of each storage that holds a matrix."""

_PLAIN_PACKAGES = frozenset({"torch", "aten", "prims", "_operator", "builtins", "math"})
"""Whose functions are no products but for those in PRODUCTS."""

_LONGEST_REASON = 120
_NAMED = 2


@dataclass
class Graph:
    """One compiled graph: the storages of what it may multiply with, and how often it ran."""

    storages: AbstractSet[Key]
    runs: int = 0


@dataclass
class CompiledWork:
    """The graphs that were compiled for one model."""

    graphs: list[Graph] = field(default_factory=list)
    breaks_before: Counter[str] = field(default_factory=lambda: Counter(_breaks()))
    recompilations_before: int = field(default_factory=lambda: len(_recompilations()))

    def backend(self, options: dict[str, Any], *, dynamic: bool) -> Any:
        """Return inductor with `options` as a backend of torch.compile, whose graphs are noted."""
        return _Watched(self, options, dynamic)

    def runs(self) -> list[int]:
        """Return how often each graph has run so far."""
        return [graph.runs for graph in self.graphs]

    def captured_share(self, matrices: Matrices) -> float:
        """Return the share of the matrices that any graph multiplies with, 0 to 1."""
        captured = set(chain.from_iterable(graph.storages for graph in self.graphs))
        return _share(_elements(captured, matrices), matrices)

    def executed_share(
        self, matrices: Matrices, before: list[int], after: list[int], passes: int
    ) -> float:
        """Return the share of the products of `passes` forward passes that graphs ran, 0 to 1.

        `before` and `after` are what `runs` said around them.
        """
        known = [*before, *[0] * (len(after) - len(before))]
        executed = sum(
            (last - first) * _elements(graph.storages, matrices)
            for graph, first, last in zip(self.graphs, known, after, strict=False)
        )
        return _share(executed / passes if passes else 0.0, matrices)

    def notes(self) -> tuple[str, ...]:
        """Say how often and why graphs were broken and compiled anew."""
        breaks = Counter(_breaks()) - self.breaks_before
        reasons = _recompilations()[self.recompilations_before :]
        return (
            *_counted("graph breaks", breaks.total(), [text for text, _ in breaks.most_common()]),
            *_counted("recompilations", len(reasons), list(dict.fromkeys(reasons))),
        )


def matrices_of(model: nn.Module, calls: Calls) -> dict[Key, int]:
    """Return the storages that a forward pass multiplies with, each with its elements."""
    layers = [module for module in model.modules() if is_linear(module)]
    largest = (max(stored_tensors(layer), key=_size, default=None) for layer in layers)
    matrices = {storage_key(t): t.numel() for t in largest if t is not None and not t.is_meta}
    parameters = chain.from_iterable(map(inner_tensors, chain(model.parameters(), model.buffers())))
    others = {storage_key(tensor): tensor.numel() for tensor in parameters}
    return matrices | {key: n for key, n in others.items() if key in calls.multiplied}


_Inductor: Any = torch._TorchCompileInductorWrapper  # noqa: SLF001  # no public name


class _Watched(_Inductor):  # type: ignore[misc]
    """torch's own inductor backend; the graphs that it compiles are noted and counted."""

    def __init__(self, work: CompiledWork, options: dict[str, Any], dynamic: bool) -> None:
        super().__init__(None, options, dynamic)
        self._work = work

    def __call__(self, model_: Any, inputs_: Any, **patches: Any) -> Callable[..., Any]:
        """Compile a graph. What is returned counts its calls, which takes some 50 ns each."""
        graph = Graph(frozenset(_storages(model_, inputs_)))
        self._work.graphs.append(graph)
        compiled: Callable[..., Any] = super().__call__(model_, inputs_, **patches)

        def counted(*arguments: Any) -> Any:
            graph.runs += 1
            return compiled(*arguments)

        return counted


def _storages(module: Any, inputs: Iterable[Any]) -> set[Key]:
    """Return the storages of the tensors that a graph gets and may multiply with.

    Tensors of its own count whatever becomes of them: dynamo hands a model's weights in.
    """
    nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
    given = [
        value
        for node, value in zip(nodes, inputs, strict=False)
        if isinstance(value, Tensor) and _is_multiplied(node)
    ]
    own = chain(module.parameters(), module.buffers())
    return {storage_key(inner) for tensor in chain(own, given) for inner in inner_tensors(tensor)}


def _is_multiplied(placeholder: Any) -> bool:
    """Whether an input of a graph, or what is made of it, goes into a product.

    A call that torch does not name (a library's operator, a kernel, a graph within) may be one.
    """
    waiting, seen = [placeholder], {placeholder}
    while waiting:
        for user in waiting.pop().users:
            if user.op == "call_module" or _may_multiply(user):
                return True
            if user not in seen:
                seen.add(user)
                waiting.append(user)
    return False


def _may_multiply(node: Any) -> bool:
    if node.op == "call_method":
        return node.target in PRODUCTS
    if node.op != "call_function":
        return False
    name = str(getattr(node.target, "__name__", "")).partition(".")[0]
    if name in PRODUCTS:
        return True
    return _package(node.target) not in _PLAIN_PACKAGES


def _package(function: Any) -> str:
    """Return the package of a function, or the namespace of an operator of torch.ops."""
    qualified, in_namespace, _ = str(getattr(function, "_qualified_op_name", "")).partition("::")
    if in_namespace:
        return qualified
    namespace = getattr(function, "namespace", None)
    if isinstance(namespace, str):
        return namespace
    return str(getattr(function, "__module__", "") or "torch").partition(".")[0]


def _elements(storages: AbstractSet[Key], matrices: Matrices) -> int:
    return sum(n for key, n in matrices.items() if key in storages)


def _share(elements: float, matrices: Matrices) -> float:
    total = sum(matrices.values())
    return elements / total if total else 0.0


def _size(tensor: Tensor) -> int:
    return tensor.nbytes


def _breaks() -> dict[str, int]:
    return dict(dynamo.counters["graph_break"])


def _recompilations() -> list[str]:
    """Return the reason of each recompilation that dynamo still remembers."""
    metrics = dynamo.get_compilation_metrics()
    reasons = (getattr(one, "recompile_reason", None) for one in metrics)
    return [str(reason) for reason in reasons if reason]


def _counted(what: str, n: int, reasons: list[str]) -> list[str]:
    if not n:
        return []
    first = [" ".join(reason.split())[:_LONGEST_REASON] for reason in reasons[:_NAMED]]
    return [f"{n} {what}: {'; '.join(first)}{', …' if len(reasons) > _NAMED else ''}"]
