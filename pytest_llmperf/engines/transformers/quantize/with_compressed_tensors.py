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


class PackedLinear(nn.Module):
    """A linear layer that unpacks its weight at each forward pass.

    `stored_format` is compressed-tensors' name.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = int(layer.in_features), int(layer.out_features)
        self.quantization_scheme = layer.quantization_scheme
        self.quantization_status = layer.quantization_status
        self.stored_format = str(
            getattr(layer.quantization_scheme.format, "value", layer.quantization_scheme.format)
        )
        self._compressor: Any = BaseCompressor.get_value_from_registry(self.stored_format)
        for name, tensor in layer.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(tensor.data, requires_grad=False))
        for name, tensor in layer.named_buffers(recurse=False):
            self.register_buffer(name, tensor)
        if "bias" not in self._parameters:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """[…, in_features] -> […, out_features]."""
        scheme = self.quantization_scheme
        own = {
            name: tensor.data
            for name, tensor in (*self.named_parameters(), *self.named_buffers())
            if name != "bias"
        }
        weight = self._compressor.decompress(own, scheme)["weight"]
        if scheme.input_activations is not None:
            x = forward_quantize(self, x, "input", scheme.input_activations)
        return nn.functional.linear(x, weight.to(x.dtype), self._parameters["bias"])


def keep_packed(model: Any, folder: Path) -> list[str]:
    """Replace each compressed layer of a model that was just loaded by a PackedLinear.

    Returns the paths of the others.

    Packed zero points are read from `folder` again: transformers makes no room for them.
    """
    hook = getattr(model, "ct_decompress_hook", None)
    if hook is None:
        raise LoadError(
            "compressed-tensors loaded the checkpoint unpacked: its config says that it is not compressed."
        )
    hook.remove()
    del model.ct_decompress_hook
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


def _read_zero_points(model: nn.Module, folder: Path) -> None:
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a dictionary
                layer, _, last = name.rpartition(".")
                if last == "weight_zero_point":
                    packed: Any = model.get_submodule(layer)
                    device = packed.weight_scale.device
                    packed.register_parameter(
                        last, nn.Parameter(tensors.get_tensor(name).to(device), requires_grad=False)
                    )
