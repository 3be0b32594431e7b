"""What a quantization did, counted from the layers that are there.

The conversion's notes give only the reasons.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from pytest_llmperf.core.effective import LeftOut, Quantized
from pytest_llmperf.core.quantization import layer_bytes, packed_layer_bytes
from pytest_llmperf.engines.transformers.quantize.convert import Conversion
from pytest_llmperf.engines.transformers.quantize.storage import (
    format_of,
    is_linear,
    is_quantized,
    layout_of,
    logical_weights,
    weight_tensors,
)
from pytest_llmperf.instruments.layers import dtype_name


def quantized_layers(model: nn.Module, conversion: Conversion) -> Quantized:
    """Every linear layer of the model, as quantized or as left out with the reason."""
    # Inside an adapter.
    named = ((path.removesuffix(".base_layer"), module) for path, module in model.named_modules())
    linears = {path: module for path, module in named if is_linear(module)}
    low = {path: layer for path, layer in linears.items() if is_quantized(layer)}
    return Quantized(
        part=conversion.part,
        bits=conversion.scheme.row.bits,
        layers=len(linears),
        converted=len(low),
        elements=sum(map(logical_weights, linears.values())),
        converted_elements=sum(map(logical_weights, low.values())),
        formats=tuple(sorted({format_of(layer) for layer in low.values()})),
        held=dict(_held(list(low.values()))),
        analytic=dict(_analytic(list(low.values()), conversion)),
        left_out=_left_out(
            {path: layer for path, layer in linears.items() if path not in low}, conversion
        ),
        loaded_as_linear=dict(conversion.loaded_as_linear),
    )


def _held(layers: list[nn.Module]) -> Counter[str]:
    held: Counter[str] = Counter()
    for layer in layers:
        for tensor in weight_tensors(layer):
            held[dtype_name(tensor)] += tensor.nbytes
    return held


def _analytic(layers: list[Any], conversion: Conversion) -> Counter[str]:
    total: Counter[str] = Counter()
    for layer in layers:
        shape = int(layer.out_features), int(layer.in_features)
        if conversion.packed is None:
            total += layer_bytes(
                conversion.scheme,
                *shape,
                layout=layout_of(layer),
                float_dtype=dtype_name(layer.weight),
            )
        else:
            total += packed_layer_bytes(conversion.packed, *shape, dtype_name(layer.weight_scale))
    return total


def _left_out(layers: dict[str, nn.Module], conversion: Conversion) -> tuple[LeftOut, ...]:
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for path, layer in layers.items():
        declared = path in conversion.declared
        reason = (
            conversion.declared.get(path) or conversion.passed_over.get(path) or _stored_as(layer)
        )
        groups.setdefault((type(layer).__name__, reason, declared), []).append(path)
    return tuple(
        LeftOut(
            cls=cls,
            layers=len(paths),
            elements=sum(logical_weights(layers[path]) for path in paths),
            reason=reason,
            declared=declared,
            example=paths[0],
        )
        for (cls, reason, declared), paths in groups.items()
    )


def _stored_as(layer: nn.Module) -> str:
    dtypes = sorted({dtype_name(tensor) for tensor in weight_tensors(layer)})
    return f"its weights are {', '.join(dtypes)}"
