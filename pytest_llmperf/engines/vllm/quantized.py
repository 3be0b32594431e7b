"""Which of vLLM's linear layers are quantized, into which format and how many bytes.

The layers that are there say it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
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
    is_low,
    library_weight,
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
    """Return every linear layer, quantized or left out with the reason.

    None for a plan that asks for none. `packed` says how a checkpoint stores its layers.
    """
    if plan.quantization is None:
        return None
    scheme, layers = scheme_of(plan.quantization), list(linears(model))
    converted = [layer for _, layer in layers if is_low(layer)]
    left_out = [_left_out(path, layer) for path, layer in layers if not is_low(layer)]
    return Quantized(
        part=plan.quantization,
        bits=scheme.row.bits,
        layers=len(layers),
        converted=len(converted),
        elements=sum(_elements(layer) for _, layer in layers),
        converted_elements=sum(map(_elements, converted)),
        formats=tuple(sorted(set(map(format_of, converted)))),
        stored_bytes=_stored_bytes(converted),
        analytic=_analytic_bytes(converted, scheme, packed),
        left_out=tuple(left_out),
    )


def format_of(layer: Any) -> str:
    """Return the storage format, as core.quantization.Method.formats names it."""
    scheme = type(getattr(layer, "scheme", None)).__name__
    if scheme in FORMATS:
        return FORMATS[scheme]
    states = _bitsandbytes_states(layer)
    if states:
        return str(states[0].quant_type)
    return stored_weight(layer).dtype_name


def _bitsandbytes_states(layer: Any) -> list[Any]:
    """Return the states of a weight that bitsandbytes quantized; none for another."""
    states = getattr(getattr(layer, "weight", None), "bnb_quant_state", None)
    return list(states.values()) if states else []


def _elements(layer: Any) -> int:
    outputs, inputs = shape_of(layer)
    return outputs * inputs


def _stored_bytes(layers: Iterable[Any]) -> dict[str, int]:
    """Return the bytes by dtype of the layers' weights, scales and tables, without biases."""
    sizes: Counter[str] = Counter()
    for layer in layers:
        for dtype, size in _stored_parts(layer):
            sizes[dtype] += size
    return dict(sizes)


def _stored_parts(layer: Any) -> Iterator[tuple[str, int]]:
    """Yield dtype and bytes of a layer's weight, scales and tables, but not of its bias."""
    weight = library_weight(layer)
    if weight is not None:
        yield weight.dtype_name, weight.bytes
    state_tensors = [t for state in _bitsandbytes_states(layer) for t in (state.absmax, state.code)]
    for tensor in (*own_tensors(layer), *state_tensors):
        if isinstance(tensor, Tensor):
            yield dtype_name(tensor), tensor.nbytes


def _analytic_bytes(layers: Iterable[Any], scheme: Scheme, packed: Packed | None) -> dict[str, int]:
    """Return the bytes by dtype that the layers should have by the definition of their format."""
    sizes: Counter[str] = Counter()
    for layer in layers:
        sizes += _analytic_layer_bytes(layer, scheme, packed)
    return dict(sizes)


def _analytic_layer_bytes(layer: Any, scheme: Scheme, packed: Packed | None) -> Counter[str]:
    outputs, inputs = shape_of(layer)
    if packed is None:
        return layer_bytes(scheme, outputs, inputs)
    return packed_layer_bytes(packed, outputs, inputs, dtype_name(layer.weight_scale))


def _left_out(path: str, layer: Any) -> LeftOut:
    head = path == "lm_head"
    return LeftOut(
        cls=type(layer).__name__,
        layers=1,
        elements=_elements(layer),
        reason=_HEAD if head else f"its weights are {stored_weight(layer).dtype_name}",
        declared=head,
        example=path,
    )
