"""Models that a project builds itself: `pkg.mod:build`."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.loading.reference_key import held_hash
from pytest_llmperf.engines.transformers.checkpoint import SourceModel, weights_dtype
from pytest_llmperf.engines.transformers.parameter_hash import parameters_hash
from pytest_llmperf.errors import LoadError
from pytest_llmperf.instruments.layers import dtype_name

_NEEDED = ("config", "forward", "generate")
_PAIR = 2


def from_factory(plan: LoadPlan, device: torch.device) -> SourceModel:
    """Call the factory, with the plan if it takes an argument.

    It returns a model or (model, tokenizer). Raises LoadError where it cannot be found or called,
    or returns something else.
    """
    name = plan.model.location
    model, tokenizer = _unpack(_call(_import_factory(name), plan), name)
    checkpoint_dtype = _most_common_dtype(model)
    content_hash = parameters_hash(model)
    held = held_hash(model, made_by=name.partition(":")[0])
    if plan.weights_dtype != "auto":
        _convert(model, weights_dtype(plan, checkpoint_dtype))
    return SourceModel(
        model=model.to(device),
        tokenizer=tokenizer,
        content_hash=content_hash,
        checkpoint_dtype=checkpoint_dtype,
        held_hash=held,
    )


def _import_factory(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    factory: Any = getattr(_import_module(module_name, name), attribute, None)
    if not callable(factory):
        kind = "has no such name" if factory is None else f"holds a {type(factory).__name__} there"
        raise LoadError(
            f"model {name!r}: module {module_name!r} {kind}; "
            "a function that builds the model is needed."
        )
    build: Callable[..., Any] = factory
    return build


def _import_module(module_name: str, model_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise LoadError(
            f"model {model_name!r}: module {module_name!r} cannot be imported: {error}. "
            "It must be importable in the worker: install it, put its folder on PYTHONPATH, "
            "or start pytest in that folder.",
        ) from error


def _call(factory: Callable[..., Any], plan: LoadPlan) -> Any:
    arguments = [plan] if inspect.signature(factory).parameters else []
    try:
        return factory(*arguments)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise LoadError(
            f"model {plan.model.name!r}: the factory raised {type(error).__name__}: {error}"
        ) from error


def _unpack(product: Any, name: str) -> tuple[Any, Any]:
    """Return the model and the tokenizer, or None, that a factory returned."""
    is_pair = isinstance(product, tuple) and len(product) == _PAIR
    model, tokenizer = product if is_pair else (product, None)
    if not _is_transformers_model(model):
        raise LoadError(
            f"model {name!r}: the factory returned a {type(model).__name__}; "
            "a transformers model (with config, forward and generate), or (model, tokenizer), "
            "is needed.",
        )
    return model, tokenizer


def _is_transformers_model(model: Any) -> bool:
    has_attributes = all(hasattr(model, attribute) for attribute in _NEEDED)
    return isinstance(model, nn.Module) and has_attributes


def _convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert parameters; buffers such as rotary tables keep the precision they were made in."""
    for parameter in model.parameters():
        if _is_plain_float(parameter):
            parameter.data = parameter.data.to(dtype)


def _is_plain_float(parameter: nn.Parameter) -> bool:
    """Whether the parameter is in floating point, and of no subclass that stores it otherwise."""
    return parameter.is_floating_point() and type(parameter) is nn.Parameter


def _most_common_dtype(model: nn.Module) -> str:
    """Return the dtype of most elements of the parameters; "float32" for a model without any."""
    elements: Counter[str] = Counter()
    for parameter in model.parameters():
        elements[dtype_name(parameter)] += parameter.numel()
    return max(elements, key=lambda dtype: elements[dtype], default="float32")
