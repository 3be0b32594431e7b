"""What a quantization did, counted from the layers that the model holds.

The conversion's notes give only the reasons.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

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
    """Report every linear layer of the model, as quantized or as left out with the reason."""
    linears = _linears(model)
    quantized = [layer for layer in linears.values() if is_quantized(layer)]
    others = {path: layer for path, layer in linears.items() if not is_quantized(layer)}
    return Quantized(
        part=conversion.part,
        bits=conversion.scheme.row.bits,
        layers=len(linears),
        converted=len(quantized),
        elements=_elements(linears.values()),
        converted_elements=_elements(quantized),
        formats=_formats(quantized),
        stored_bytes=dict(_stored_bytes(quantized)),
        analytic=dict(_analytic_bytes(quantized, conversion)),
        left_out=_left_out(others, conversion),
        loaded_as_linear=dict(conversion.loaded_as_linear),
    )


def _elements(layers: Iterable[nn.Module]) -> int:
    return sum(map(logical_weights, layers))


def _linears(model: nn.Module) -> dict[str, nn.Module]:
    """Return linear layers by path; one inside an adapter has the path of the adapter."""
    modules = model.named_modules()
    return {path.removesuffix(".base_layer"): layer for path, layer in modules if is_linear(layer)}


def _formats(layers: list[nn.Module]) -> tuple[str, ...]:
    return tuple(sorted(set(map(format_of, layers))))


def _stored_bytes(layers: list[nn.Module]) -> Counter[str]:
    """Return the bytes that the layers' weights occupy, by dtype."""
    total = Counter[str]()
    for tensor in chain.from_iterable(map(weight_tensors, layers)):
        total[dtype_name(tensor)] += tensor.nbytes
    return total


def _analytic_bytes(layers: list[nn.Module], conversion: Conversion) -> Counter[str]:
    """Return the bytes that the scheme makes of the layers' shapes, by dtype."""
    total: Counter[str] = Counter()
    for layer in layers:
        total += _analytic_bytes_of_layer(layer, conversion)
    return total


def _analytic_bytes_of_layer(layer: Any, conversion: Conversion) -> Counter[str]:
    shape = int(layer.out_features), int(layer.in_features)
    if conversion.packed is not None:
        return packed_layer_bytes(conversion.packed, *shape, dtype_name(layer.weight_scale))
    dtype = dtype_name(layer.weight)
    return layer_bytes(conversion.scheme, *shape, layout=layout_of(layer), float_dtype=dtype)


class _LeftOutKind(NamedTuple):
    """What layers share that are in one row of the report."""

    cls: str
    reason: str
    declared: bool


def _left_out(layers: dict[str, nn.Module], conversion: Conversion) -> tuple[LeftOut, ...]:
    groups: dict[_LeftOutKind, list[str]] = defaultdict(list)
    for path, layer in layers.items():
        groups[_left_out_kind(path, layer, conversion)].append(path)
    return tuple(
        LeftOut(
            cls=kind.cls,
            layers=len(paths),
            elements=_elements(layers[path] for path in paths),
            reason=kind.reason,
            declared=kind.declared,
            example=paths[0],
        )
        for kind, paths in groups.items()
    )


def _left_out_kind(path: str, layer: nn.Module, conversion: Conversion) -> _LeftOutKind:
    reason = conversion.reason(path) or _stored_as(layer)
    return _LeftOutKind(type(layer).__name__, reason, path in conversion.declared)


def _stored_as(layer: nn.Module) -> str:
    dtypes = sorted({dtype_name(tensor) for tensor in weight_tensors(layer)})
    return f"its weights are {', '.join(dtypes)}"
