"""Which linear layers of a model are quantized, one after the other.

Never more than one of them is in memory twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.quantization import Packed, Scheme, scheme_of
from pytest_llmperf.engines.transformers.quantize.plain import as_linear
from pytest_llmperf.engines.transformers.quantize.storage import modules_kept_in_float32
from pytest_llmperf.errors import LoadError

LOAD_AS_LINEAR = "load_as_linear"
"""Load-plan option: False leaves subclasses of nn.Linear as they are.

It is for tests that show what happens then.
"""


@dataclass(frozen=True)
class Conversion:
    """What a quantizer did.

    `declared` and `passed_over` are paths of linear layers that it left alone, with the reason.
    `packed` says how a checkpoint stores its layers, where the weights came from one.
    """

    part: str
    scheme: Scheme
    packed: Packed | None = None
    declared: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)
    loaded_as_linear: dict[str, int] = field(default_factory=dict)

    def reason(self, path: str) -> str | None:
        """Return why the layer at `path` was left alone; None where it was not."""
        return self.declared.get(path) or self.passed_over.get(path)


class Quantizer:
    """Converts the linear layers of one model.

    Use: `prepare` the model, `convert` each module, then take `conversion`.

    The output head stays as it is: it shares its weights with the embedding in many models, and
    quantizing it costs the most accuracy. So do modules that the architecture keeps in float32.
    """

    def __init__(self, plan: LoadPlan, device: torch.device) -> None:
        self._part = plan.quantization or ""
        self._scheme = scheme_of(self._part)
        self._device = device
        self._as_linear = bool(plan.option(LOAD_AS_LINEAR, True))
        self._backend: Any = _backend(self._scheme, plan)
        self.conversion = Conversion(self._part, self._scheme)

    def prepare(self, model: Any) -> None:
        """Note what is left out. The model may still lie on the meta device."""
        self.conversion.declared.update(left_out_beforehand(model))

    def convert(self, model: Any, path: str) -> None:
        """Quantize the module at `path` if it is a linear layer that is not left out.

        Its weights must be loaded. A layer of another class is replaced by nn.Linear only now, if
        it computes the same: transformers draws random weights by class.
        """
        module = model.get_submodule(path)
        if path in self.conversion.declared or not isinstance(module, (nn.Linear, Conv1D)):
            return
        linear = (as_linear(module) if self._as_linear else None) or module
        reason = self._refusal(linear)
        if reason is not None:
            self.conversion.passed_over[path] = reason
            return
        if linear is not module:
            self._count_replacement(module)
        quantized = self._backend.converted(linear, self._scheme, self._device)
        model.set_submodule(path, quantized)

    def _count_replacement(self, module: nn.Module) -> None:
        counts, name = self.conversion.loaded_as_linear, type(module).__name__
        counts[name] = counts.get(name, 0) + 1

    def _refusal(self, module: nn.Module) -> str | None:
        """Say why a layer is not quantized; None where it is."""
        if type(module) is not nn.Linear:
            return f"{type(module).__name__} is not converted, only nn.Linear is"
        reason: str | None = self._backend.refusal(module, self._scheme, self._device)
        return reason

    def finish(self, model: Any) -> Conversion:
        """Move everything else to the device, too."""
        place(model, self._device)
        self._backend.mark(model, self._scheme)
        return self.conversion

    def quantize(self, model: Any) -> Conversion:
        """Quantize a loaded model, layer by layer."""
        self.prepare(model)
        for path in dict(model.named_modules()):
            if path:
                self.convert(model, path)
        return self.finish(model)


def checkpoint_conversion(plan: LoadPlan, model: Any, packed: Packed, folder: Path) -> Conversion:
    """Keep the layers of a checkpoint that was just loaded as they are stored.

    Its config declares the layers that it does not quantize.
    """
    part = plan.quantization or ""
    from_checkpoint: Any = import_module(
        "pytest_llmperf.engines.transformers.quantize.with_compressed_tensors"
    )
    declared = left_out_beforehand(model)
    for path in from_checkpoint.keep_packed(model, folder):
        declared.setdefault(path, "the checkpoint's config leaves it out")
    return Conversion(part, scheme_of(part), packed, declared)


def left_out_beforehand(model: Any) -> dict[str, str]:
    """Return the paths of linear layers that are never quantized, with the reason."""
    head = model.get_output_embeddings()
    float32_modules = modules_kept_in_float32(model)
    reasons: dict[str, str] = {}
    for path, module in model.named_modules():
        if module is head:
            reasons[path] = "the output head keeps its precision"
        elif float32_modules.intersection(path.split(".")):
            reasons[path] = "the architecture keeps it in float32"
    return reasons


def place(model: nn.Module, device: torch.device) -> None:
    """Move parameters and buffers that are elsewhere to `device`; tied ones stay tied."""
    moved: dict[int, Any] = {}
    for module in model.modules():
        # `module.to` would touch what is quantized already.
        _place_tensors(module._parameters, device, moved)  # noqa: SLF001
        _place_tensors(module._buffers, device, moved)  # noqa: SLF001


def _place_tensors(tensors: dict[str, Any], device: torch.device, moved: dict[int, Any]) -> None:
    """Move the tensors of one module; `moved` has those that another module shares, by id."""
    for name, tensor in tensors.items():
        if tensor is None or tensor.device == device:
            continue
        if id(tensor) not in moved:
            moved[id(tensor)] = _moved(tensor, device)
        tensors[name] = moved[id(tensor)]


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    values = tensor.data.to(device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(values, requires_grad=False)
    return values


def _backend(scheme: Scheme, plan: LoadPlan) -> Any:
    library = scheme.row.library
    try:
        return import_module(f"{__package__}.with_{library}")
    except ImportError as error:
        raise LoadError(
            f"model {plan.model.name!r}: strategy part {scheme.method!r} needs {library}, "
            f"which cannot be imported ({error}). "
            f"pip install 'pytest-llmperf[{scheme.row.extra}]'",
        ) from error
