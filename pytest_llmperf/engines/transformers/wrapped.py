"""A model that the test itself has loaded, measured in the test's own process.

What is changed for measuring is put back.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import torch

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.loading.reference_key import held_hash, reference_key
from pytest_llmperf.engines.transformers.load import ModelOnDevice
from pytest_llmperf.engines.transformers.loaded import TransformersModel
from pytest_llmperf.errors import UsageError
from pytest_llmperf.instruments.layers import dtype_name
from pytest_llmperf.instruments.ranks import package_versions


class WrappedEngine:
    """An engine that opens the model it was constructed with. `device` holds its parameters."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        parameter = _first_parameter(model)
        if parameter is None or not hasattr(model, "generate"):
            raise UsageError(
                f"llmperf.wrap({type(model).__name__}): "
                "a loaded transformers model with `generate` is needed. "
                "llmperf.measure(callable, tokens=…) measures anything that can be called.",
            )
        self._model = model
        self._tokenizer = tokenizer
        self.device = str(parameter.device.type)

    def open(self, plan: LoadPlan) -> WrappedModel:
        """Take the model as it is, and put it in evaluation mode while it is measured."""
        return WrappedModel(self._model, self._tokenizer, plan)


class WrappedModel(TransformersModel):
    """The model as the session measures it; see engines.base.LoadedModel.

    `close` restores the model's training flags and generation config, and frees nothing.
    """

    def __init__(self, model: Any, tokenizer: Any, plan: LoadPlan) -> None:
        self._own = model
        self._was_training = {module: module.training for module in model.modules()}
        self._generation_config = model.generation_config
        super().__init__(_as_loaded(model.eval(), tokenizer, plan))

    def close(self) -> None:
        """Give the model back as it was."""
        for module, training in self._was_training.items():
            module.training = training
        self._own.generation_config = self._generation_config
        vars(self).clear()


def _first_parameter(model: Any) -> torch.nn.Parameter | None:
    if not isinstance(model, torch.nn.Module):
        return None
    return next(model.parameters(), None)


def _as_loaded(model: Any, tokenizer: Any, plan: LoadPlan) -> ModelOnDevice:
    """Describe the model as if it had been loaded in the dtype and on the device that it has."""
    parameter = next(model.parameters())
    dtype = dtype_name(parameter)
    return ModelOnDevice(
        model=model,
        tokenizer=tokenizer,
        plan=msgspec.structs.replace(plan, weights_dtype=dtype),
        device=parameter.device,
        content_hash=fingerprint(model),
        reference_key=reference_key(model, tokenizer, held_hash(model)),
        checkpoint_dtype=dtype,
        versions=package_versions(),
    )


def fingerprint(model: torch.nn.Module) -> str:
    """Return a hash of the names, shapes, dtypes and sums of all tensors.

    It is cheap on any device, and an edit or a permutation changes it.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        line = f"{name} {tuple(tensor.shape)} {tensor.dtype} {_sums(tensor)!r}\n"
        digest.update(line.encode())
    return digest.hexdigest()


def _sums(tensor: torch.Tensor) -> tuple[float, float, float]:
    """Return the sums of the values, of their squares, and of the values times their places."""
    values = tensor.detach().double().flatten()
    places = torch.arange(1, values.numel() + 1, device=values.device, dtype=values.dtype)
    by_place = values * places
    return values.sum().item(), values.square().sum().item(), by_place.sum().item()
