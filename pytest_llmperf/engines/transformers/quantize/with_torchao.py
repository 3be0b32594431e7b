"""Weight-only int8 and int4, and float8, by torchao.

The weight becomes a tensor subclass; the layer stays an nn.Linear.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8WeightOnlyConfig,
    PerRow,
    quantize_,
)
from torchao.quantization.quantize_.workflows import Int4PackingFormat

from pytest_llmperf.core.quantization import Scheme

_FLOAT8_MULTIPLE = 16


def refusal(layer: nn.Linear, scheme: Scheme, _device: torch.device) -> str | None:
    """Say why torchao would pass over the layer, which it does without an error."""
    inputs, outputs = layer.in_features, layer.out_features
    if scheme.method == "int4wo" and inputs % scheme.group:
        return f"{inputs} inputs are no multiple of the group size {scheme.group}"
    multiplies_float8 = scheme.method == "fp8" and not scheme.weight_only
    if multiplies_float8 and (inputs | outputs) % _FLOAT8_MULTIPLE:
        return f"{outputs} x {inputs} is not a multiple of {_FLOAT8_MULTIPLE} in both dimensions"
    return None


def converted(layer: nn.Linear, scheme: Scheme, device: torch.device) -> nn.Module:
    """Quantize the layer on `device`, in place."""
    layer.to(device)
    if scheme.method == "int4wo" and device.type == "cpu":
        _int4_for_cpu(layer, scheme)
    else:
        quantize_(layer, _config(scheme), filter_fn=lambda *_: True)
    return layer.requires_grad_(requires_grad=False)


def mark(_model: Any, _scheme: Scheme) -> None:
    """Do nothing, since nothing looks for a flag."""


def _config(scheme: Scheme) -> Any:
    """Return the configuration in torchao's terms.

    torchao would set options of the compiler on the side; those are the load plan's.
    """
    if scheme.method == "int8wo":
        return Int8WeightOnlyConfig(set_inductor_config=False)
    if scheme.method == "int4wo":
        tiled = Int4PackingFormat.TILE_PACKED_TO_4D
        return Int4WeightOnlyConfig(
            group_size=scheme.group, int4_packing_format=tiled, set_inductor_config=False
        )
    if scheme.weight_only:
        return Float8WeightOnlyConfig(set_inductor_config=False)
    return Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(), set_inductor_config=False
    )


def _int4_for_cpu(layer: nn.Linear, scheme: Scheme) -> None:
    """Store the weight in the layout for a CPU, which torchao's stable configurations lack."""
    # A prototype is imported only where it is needed.
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor  # noqa: PLC0415

    weight = Int4OpaqueTensor.from_hp(layer.weight.data, [1, scheme.group])
    layer.weight = nn.Parameter(weight, requires_grad=False)
