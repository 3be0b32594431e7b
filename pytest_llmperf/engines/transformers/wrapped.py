"""A model that the test itself has loaded, as a session in the test's own process.

What is changed for measuring is put back.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import torch

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.transformers.load import Loaded
from pytest_llmperf.engines.transformers.loaded import TransformersModel
from pytest_llmperf.errors import UsageError
from pytest_llmperf.instruments.ranks import package_versions


class WrappedEngine:
    """Opens the model it was given. `device` is where its parameters are."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        parameter = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
        if parameter is None or not hasattr(model, "generate"):
            raise UsageError(
                f"llmperf.wrap({type(model).__name__}): a loaded transformers model with `generate` is needed. "
                "llmperf.measure(callable, tokens=…) measures anything that can be called.",
            )
        self._model = model
        self._tokenizer = tokenizer
        self.device = str(parameter.device.type)

    def open(self, plan: LoadPlan) -> WrappedModel:
        """Take the model as it is, in evaluation mode while it is measured."""
        return WrappedModel(self._model, self._tokenizer, plan)


class WrappedModel(TransformersModel):
    """See `engines.base.LoadedModel`.

    `close` restores the model's training flags and generation config, and frees nothing.
    """

    def __init__(self, model: Any, tokenizer: Any, plan: LoadPlan) -> None:
        self._own = model
        self._was_training = {module: module.training for module in model.modules()}
        self._generation_config = model.generation_config
        model.eval()
        parameter = next(model.parameters())
        dtype = str(parameter.dtype).removeprefix("torch.")
        super().__init__(
            Loaded(
                model=model,
                tokenizer=tokenizer,
                plan=msgspec.structs.replace(plan, weights_dtype=dtype),
                device=parameter.device,
                load_s=0.0,
                content_hash=fingerprint(model),
                checkpoint_dtype=dtype,
                versions=package_versions(),
            ),
        )

    def close(self) -> None:
        """Give the model back as it was."""
        for module, training in self._was_training.items():
            module.training = training
        self._own.generation_config = self._generation_config
        vars(self).clear()


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of names, shapes, dtypes and three sums of each tensor: of its values, their squares, and by their places.

    Cheap on any device, and changed by an edit or a permutation.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        wide = tensor.detach().double().flatten()
        place = torch.arange(1, wide.numel() + 1, device=wide.device, dtype=wide.dtype)
        sums = wide.sum().item(), wide.square().sum().item(), (wide * place).sum().item()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {sums!r}\n".encode())
    return digest.hexdigest()
