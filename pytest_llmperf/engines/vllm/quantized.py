"""Which of vLLM's linear layers are quantized, into which format and how many bytes, from the layers that are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from pytest_llmperf.core.effective import LeftOut, Quantized
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.quantization import (
    Packed,
    Scheme,
    layer_bytes,
    packed_layer_bytes,
    scheme_of,
)
from pytest_llmperf.engines.vllm.inspection import (
    held_aside,
    is_low,
    linears,
    own_tensors,
    shape_of,
    stored_weight,
)
from pytest_llmperf.instruments.layers import dtype_name

FORMATS = {"CompressedTensorsW8A8Int8": "int-quantized", "CompressedTensorsWNA16": "pack-quantized"}
"""vLLM's schemes for layers of a checkpoint, and compressed-tensors' names of their formats."""

_HEAD = "the output head keeps its precision"


def quantized_layers(model: nn.Module, plan: LoadPlan, packed: Packed | None) -> Quantized | None:
    """Every linear layer, quantized or left out with the reason.

    None for a plan that asks for none. `packed`: a checkpoint's.
    """
    if plan.quantization is None:
        return None
    scheme, layers = scheme_of(plan.quantization), dict(linears(model))
    low = {path: layer for path, layer in layers.items() if is_low(layer)}
    analytic: Counter[str] = Counter()
    for layer in low.values():
        analytic += _analytic(layer, scheme, packed)
    held = Counter[str]()
    for tensor_dtype, size in (pair for layer in low.values() for pair in _held(layer)):
        held[tensor_dtype] += size
    return Quantized(
        part=plan.quantization,
        bits=scheme.row.bits,
        layers=len(layers),
        converted=len(low),
        elements=sum(map(_elements, layers.values())),
        converted_elements=sum(map(_elements, low.values())),
        formats=tuple(sorted({format_of(layer) for layer in low.values()})),
        held=dict(held),
        analytic=dict(analytic),
        left_out=tuple(_left_out(path, layer) for path, layer in layers.items() if path not in low),
    )


def format_of(layer: Any) -> str:
    """The storage format, as core.quantization.Method.formats names it."""
    scheme = type(getattr(layer, "scheme", None)).__name__
    if scheme in FORMATS:
        return FORMATS[scheme]
    states = getattr(getattr(layer, "weight", None), "bnb_quant_state", None)
    if states:
        return str(next(iter(states.values())).quant_type)
    return str(stored_weight(layer).dtype).removeprefix("torch.")


def _elements(layer: Any) -> int:
    outputs, inputs = shape_of(layer)
    return outputs * inputs


def _held(layer: Any) -> Iterator[tuple[str, int]]:
    """Bytes by dtype of the weight, scales and tables; the bias is not in it."""
    aside = held_aside(layer)
    if aside is not None:
        yield str(aside.dtype).removeprefix("torch."), aside.bytes
    yield from ((dtype_name(tensor), tensor.nbytes) for tensor in own_tensors(layer))
    for state in (getattr(getattr(layer, "weight", None), "bnb_quant_state", None) or {}).values():
        yield from (
            (dtype_name(t), t.nbytes) for t in (state.absmax, state.code) if isinstance(t, Tensor)
        )


def _analytic(layer: Any, scheme: Scheme, packed: Packed | None) -> Counter[str]:
    outputs, inputs = shape_of(layer)
    if packed is None:
        return layer_bytes(scheme, outputs, inputs)
    return packed_layer_bytes(packed, outputs, inputs, dtype_name(layer.weight_scale))


def _left_out(path: str, layer: Any) -> LeftOut:
    head = path == "lm_head"
    reason = (
        _HEAD
        if head
        else f"its weights are {str(stored_weight(layer).dtype).removeprefix('torch.')}"
    )
    return LeftOut(
        cls=type(layer).__name__,
        layers=1,
        elements=_elements(layer),
        reason=reason,
        declared=head,
        example=path,
    )
