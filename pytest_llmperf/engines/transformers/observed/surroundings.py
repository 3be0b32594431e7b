"""What else a run depends on, in sentences: modes, precisions, memory beside the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from pytest_llmperf.core.effective import TensorGroup
from pytest_llmperf.engines.transformers.load import ModelOnDevice
from pytest_llmperf.engines.transformers.observed.holdings import ATTRIBUTE, REST

_TRAINED_BESIDE = ("modules_to_save", "trainable_token_indices")
"""Keys of an adapter's configuration that name what it changes beside its products."""

_FULL_PRECISION = frozenset({"none", "ieee", "highest"})


def notes_on(
    loaded: ModelOnDevice, tensors: Sequence[TensorGroup], *, is_finite: bool
) -> tuple[str, ...]:
    """Return a sentence on each thing that a reader of the figures would want to know."""
    return (
        *loaded.unasked,
        *_on_memory(tensors),
        *_on_training(loaded.model),
        *_on_precision(loaded.device.type),
        *_on_adapters(loaded),
        *([] if is_finite else ["the logits of one token are not finite"]),
    )


def _on_memory(tensors: Sequence[TensorGroup]) -> Iterator[str]:
    """Say what is held beside parameters and buffers."""
    for group in tensors:
        if group.kind == ATTRIBUTE:
            yield (
                f"{group.bytes / 1e6:.3g} MB of {group.dtype} lie in attributes, neither "
                f"parameters nor buffers, like {group.example}"
            )
        elif group.kind == REST:
            yield (
                f"{group.bytes / 1e6:.3g} MB of {group.dtype} lie around tensors that are parts of "
                f"larger storages, like {group.example}"
            )


def _on_training(model: nn.Module) -> Iterator[str]:
    """Say which modules are in training mode although inference was asked for."""
    training = [module for module in model.modules() if module.training]
    if training:
        classes = Counter(type(module).__name__ for module in training)
        names = ", ".join(f"{n} {cls}" for cls, n in classes.most_common(3))
        # The class of all dropouts has no public name.
        of_dropout = nn.modules.dropout._DropoutNd  # noqa: SLF001
        dropout = [one for one in training if isinstance(one, of_dropout) and one.p > 0]
        effect = f"{len(dropout)} of them drop values at random" if dropout else "none drops values"
        yield f"{len(training)} modules are in training mode ({names}); {effect}"


def _on_precision(device: str) -> Iterator[str]:
    """Say which of torch's settings lower the precision of float32 products."""
    backends: Any = torch.backends
    settings = {"float32 matmul precision": torch.get_float32_matmul_precision()}
    if device == "cuda":
        if backends.cuda.matmul.allow_tf32:
            settings["torch.backends.cuda.matmul.allow_tf32"] = "True"
    else:
        matmul = getattr(backends.mkldnn, "matmul", None)
        settings["torch.backends.mkldnn.matmul.fp32_precision"] = str(
            getattr(matmul, "fp32_precision", "none")
        )
    for name, value in settings.items():
        if value not in _FULL_PRECISION:
            yield f"float32 products are rounded: {name} is {value}"


def _on_adapters(loaded: ModelOnDevice) -> Iterator[str]:
    """Say which adapters change nothing."""
    if loaded.adapters is None:
        return
    files = {file.name: file for file in loaded.adapters.files}
    for group in loaded.adapters.groups():
        is_idle = group.layers > 0 and group.idle_layers >= group.layers
        if is_idle and not any(files[group.name].config.get(key) for key in _TRAINED_BESIDE):
            yield (
                f"adapter {group.name!r} changes nothing: its products are zero in all "
                f"{group.layers} layers, as before training"
            )
