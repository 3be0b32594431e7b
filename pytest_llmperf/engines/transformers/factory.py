"""Models that a project builds itself: `pkg.mod:build`."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.transformers.checkpoint import Source
from pytest_llmperf.errors import LoadError

_NEEDED = ("config", "forward", "generate")
_PAIR = 2


def from_factory(plan: LoadPlan, device: torch.device) -> Source:
    """Call the factory, with the plan if it takes an argument.

    It returns a model or (model, tokenizer).
    """
    name = plan.model.location
    model, tokenizer = _unpack(_call(_find(name), plan), name)
    stored = _dtype_name(model)
    content = _hash_parameters(model)
    if plan.weights_dtype != "auto":
        _convert(model, getattr(torch, plan.weights_dtype))
    return Source(
        model=model.to(device), tokenizer=tokenizer, content_hash=content, checkpoint_dtype=stored
    )


def _find(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise LoadError(
            f"model {name!r}: module {module_name!r} cannot be imported: {error}. "
            "It must be importable in the worker: install it, put its folder on PYTHONPATH, or start pytest in that folder.",
        ) from error
    factory: Any = getattr(module, attribute, None)
    if not callable(factory):
        found = "has no such name" if factory is None else f"holds a {type(factory).__name__} there"
        raise LoadError(
            f"model {name!r}: module {module_name!r} {found}; a function that builds the model is needed."
        )
    build: Callable[..., Any] = factory
    return build


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


def _unpack(made: Any, name: str) -> tuple[Any, Any]:
    model, tokenizer = made if isinstance(made, tuple) and len(made) == _PAIR else (made, None)
    lacking = [attribute for attribute in _NEEDED if not hasattr(model, attribute)]
    if not isinstance(model, nn.Module) or lacking:
        raise LoadError(
            f"model {name!r}: the factory returned a {type(model).__name__}; "
            "a transformers model (with config, forward and generate), or (model, tokenizer), is needed.",
        )
    return model, tokenizer


def _convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Parameters only: buffers such as rotary tables keep the precision they were made in."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and type(parameter) is nn.Parameter:
            parameter.data = parameter.data.to(dtype)


def _dtype_name(model: nn.Module) -> str:
    counts: dict[str, int] = {}
    for parameter in model.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + parameter.numel()
    return max(counts, key=lambda dtype: counts[dtype], default="float32")


def _hash_parameters(model: nn.Module) -> str:
    """SHA-256 over names, dtypes and bytes of the parameters, as the factory returned them."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(
            parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
