"""Checkpoints in the compressed-tensors format, kept as they are stored.

transformers loads them through compressed-tensors, which unpacks the whole model for good at its
first forward pass: from then on it takes the memory of a plain model, whatever its config says.
Here each layer keeps its packed weights and unpacks them for the length of its own forward pass.
That saves the memory and costs time at each step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization.lifecycle.forward import forward_quantize
from safetensors import safe_open
from torch import Tensor, nn

from pytest_llmperf.engines.models.safetensors_header import weight_files
from pytest_llmperf.errors import LoadError

ZERO_POINT = "weight_zero_point"


class PackedLinear(nn.Module):
    """A linear layer that unpacks its weight at each forward pass.

    `stored_format` is compressed-tensors' name.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.in_features = int(layer.in_features)
        self.out_features = int(layer.out_features)
        self.quantization_scheme = layer.quantization_scheme
        self.quantization_status = layer.quantization_status
        self.stored_format = _format_name(layer.quantization_scheme)
        self._compressor: Any = BaseCompressor.get_value_from_registry(self.stored_format)
        self._take_tensors(layer)

    def _take_tensors(self, layer: Any) -> None:
        for name, tensor in layer.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(tensor.data, requires_grad=False))
        for name, tensor in layer.named_buffers(recurse=False):
            self.register_buffer(name, tensor)
        if "bias" not in self._parameters:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply […, in_features] to […, out_features]."""
        scheme = self.quantization_scheme
        packed = {
            name: tensor.data
            for name, tensor in (*self.named_parameters(), *self.named_buffers())
            if name != "bias"
        }
        weight = self._compressor.decompress(packed, scheme)["weight"]
        if scheme.input_activations is not None:
            x = forward_quantize(self, x, "input", scheme.input_activations)
        return nn.functional.linear(x, weight.to(x.dtype), self._parameters["bias"])


def _format_name(scheme: Any) -> str:
    """Return the format of a scheme, which says it as text or as an enumeration."""
    return str(getattr(scheme.format, "value", scheme.format))


def keep_packed(model: Any, folder: Path) -> list[str]:
    """Replace each compressed layer of a model that was just loaded by a PackedLinear.

    Returns the paths of the other linear layers. Packed zero points are read from `folder` again,
    because transformers makes no room for them. Raises LoadError where compressed-tensors has
    unpacked the model already.
    """
    _remove_unpacking_hook(model)
    plain: list[str] = []
    for path, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        if getattr(module, "quantization_scheme", None) is None:
            plain.append(path)
        else:
            model.set_submodule(path, PackedLinear(module))
    _read_zero_points(model, folder)
    return plain


def _remove_unpacking_hook(model: Any) -> None:
    """Keep compressed-tensors from unpacking the model at its first forward pass."""
    hook = getattr(model, "ct_decompress_hook", None)
    if hook is None:
        raise LoadError(
            "compressed-tensors loaded the checkpoint unpacked: "
            "its config says that it is not compressed."
        )
    hook.remove()
    del model.ct_decompress_hook


def _read_zero_points(model: nn.Module, folder: Path) -> None:
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # safe_open's object is no dictionary
                path, _, attribute = name.rpartition(".")
                if attribute == ZERO_POINT:
                    _set_zero_point(model.get_submodule(path), tensors.get_tensor(name))


def _set_zero_point(packed: Any, value: Tensor) -> None:
    on_device = value.to(packed.weight_scale.device)
    packed.register_parameter(ZERO_POINT, nn.Parameter(on_device, requires_grad=False))
