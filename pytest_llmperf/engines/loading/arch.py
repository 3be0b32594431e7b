"""Architectures with seeded random weights, made straight on the device in the plan's dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from pytest_llmperf.engines.models.architectures import ARCHITECTURES
from pytest_llmperf.engines.models.content import hash_value
from pytest_llmperf.errors import LoadError

_AUTO: Any = AutoModelForCausalLM  # its methods have no types
_SCHEME = "module by module, drawn in float32"


class Converter(Protocol):
    """What changes a model while it is built: see quantize.Quantizer."""

    def prepare(self, model: Any) -> None:
        """The model lies on the meta device."""

    def convert(self, model: Any, path: str) -> None:
        """The module at `path` has its values; it may be replaced."""


def build(
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    attention: str | None,
    converter: Converter | None = None,
    home: torch.device | None = None,
) -> PreTrainedModel:
    """Return `name` of ARCHITECTURES with random weights.

    Weights are drawn in float32 one module at a time and then rounded to `dtype`, so that models of
    one seed and one kind of device are the same model in every dtype, and no copy of the whole ever
    lies in the host's memory. Each module is handed to `converter` as soon as it has its values, so
    that a quantized model never lies on the device in full. With `home` it goes there at once:
    weights that wait on the host are those that `device` would have, and it never holds them all.
    """
    model = on_meta(config_of(name), dtype, attention)
    if converter is not None:
        converter.prepare(model)
    # A list of modules would keep those that were replaced.
    paths = [path for path, _ in model.named_modules()]
    with _seeded(device, seed), torch.no_grad():
        for path in paths:
            materialise(model, model.get_submodule(path), path, device)
            if home is not None:
                move(model.get_submodule(path), home)
            if converter is not None and path:
                converter.convert(model, path)
    model.tie_weights()
    return model


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators inside of the block, and leave them as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def content_hash(name: str, device: torch.device, seed: int) -> str:
    """Return a hash of what decides the weights of `build`.

    The generator differs between kinds of device; the dtype only rounds.
    """
    row = ARCHITECTURES[name]
    return hash_value(
        {
            "type": row.model_type,
            "config": row.config,
            "seed": seed,
            "device": device.type,
            "scheme": _SCHEME,
        }
    )


def config_of(name: str) -> PreTrainedConfig:
    """Return the config of a name of ARCHITECTURES."""
    row = ARCHITECTURES[name]
    return AutoConfig.for_model(row.model_type, **row.config)


def on_meta(config: PreTrainedConfig, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    """Return the model of a config on the meta device: shapes without values."""
    chosen = {} if attention is None else {"attn_implementation": attention}
    with torch.device("meta"):
        model: PreTrainedModel = _AUTO.from_config(config, dtype=dtype, **chosen)
    return model


def materialise(model: PreTrainedModel, module: nn.Module, path: str, device: torch.device) -> None:
    """Give the module's own parameters and buffers storage and values.

    Raises LoadError if a value was left unset.
    """
    dtypes = {name: p.dtype for name, p in module.named_parameters(recurse=False)}
    _allocate(module, device)
    # Transformers' own rules: norms 1, biases 0, rotary tables recomputed.
    initialise: Any = model._init_weights  # noqa: SLF001
    initialise(module)
    if _unset_names(module):
        for ancestor in _ancestors_without_weights(model, path):
            initialise(ancestor)
    for name in _unset_names(module):
        raise LoadError(
            f"architecture {model.config.model_type!r}: "
            f"transformers gives {path}.{name} no initial value."
        )
    for name, dtype in dtypes.items():
        _set_parameter(module, name, module.get_parameter(name).to(dtype))


def _ancestors_without_weights(model: nn.Module, path: str) -> list[nn.Module]:
    """Return those above a module that may be initialised again: none of their values is random.

    Falcon-H1's model sets a buffer of each of its layers.
    """
    parts = path.split(".")
    above = [model.get_submodule(".".join(parts[:n])) for n in range(len(parts) - 1, -1, -1)]
    return [module for module in above if not list(module.parameters(recurse=False))]


def _unset_names(module: nn.Module) -> list[str]:
    return [name for name, tensor in _own_tensors(module) if not _is_set(tensor)]


def move(module: nn.Module, device: torch.device) -> None:
    """Send the module's own parameters and buffers to `device`.

    On `meta` they have no values any more.
    """
    for name, parameter in list(module.named_parameters(recurse=False)):
        _set_parameter(module, name, parameter.to(device))
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, buffer.to(device))


def _own_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return the parameters and buffers of a module itself by their names."""
    parameters = module.named_parameters(recurse=False)
    return [*parameters, *module.named_buffers(recurse=False)]


def _allocate(module: nn.Module, device: torch.device) -> None:
    """Give the module's own tensors unset storage; parameters are float32."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        _set_parameter(module, name, _unset(parameter, torch.float32, device))
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, _unset(buffer, buffer.dtype, device))


def _set_parameter(module: nn.Module, name: str, value: torch.Tensor) -> None:
    module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _unset(like: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return storage filled with NaN, or with -1 for integers.

    No initialisation leaves these values.
    """
    value = torch.nan if dtype.is_floating_point else -1
    return torch.full(like.shape, value, dtype=dtype, device=device)


def _is_set(tensor: torch.Tensor) -> bool:
    unset = tensor.isnan() if tensor.is_floating_point() else tensor == -1
    return not bool(unset.any())
