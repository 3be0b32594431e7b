"""Bytes of a quantized model's weights, from shapes alone. Nothing heavy is imported here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from pytest_llmperf.core.quantization import Scheme, layer_bytes
from pytest_llmperf.engines.models.safetensors_header import folder_tensors

SIZES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
}
"""Bytes of an element by dtype; one for any other."""

_NOT_CONVERTED = ("embed", "lm_head", "wte", "wpe", "output.weight")
"""Parts of the names of two-dimensional weights that are tables or the output head."""

Shapes = list[tuple[int, int]]


def linear_shapes(model_type: str, config: Mapping[str, float | bool]) -> Shapes:
    """(outputs, inputs) of every linear layer of a llama or falcon of these dimensions, but for the output head."""
    return {"llama": _llama_layer, "falcon": _falcon_layer}[model_type](config) * int(
        config["num_hidden_layers"]
    )


def folder_linear_shapes(folder: Path) -> Shapes:
    """(outputs, inputs) of the weights in a checkpoint that will be quantized, told by shape and name."""
    return [
        (shape[0], shape[1])
        for name, dtype, shape in folder_tensors(folder)
        # A matrix.
        if len(shape) == 2 and "float" in dtype and not any(part in name for part in _NOT_CONVERTED)  # noqa: PLR2004
    ]


def quantized_bytes(
    plain_bytes: int, dtype: str, shapes: Shapes, scheme: Scheme, device: str
) -> int:
    """A model of `plain_bytes` in `dtype`, with the layers of `shapes` quantized by `scheme`."""
    how = {
        "layout": "Int4OpaqueTensor" if device.partition(":")[0] == "cpu" else "",
        "float_dtype": dtype,
    }
    before = SIZES[dtype] * sum(outputs * inputs for outputs, inputs in shapes)
    after = sum(layer_bytes(scheme, outputs, inputs, **how).total() for outputs, inputs in shapes)
    return plain_bytes - before + after


def checkpoint_bytes(folder: Path) -> int:
    """Bytes of all tensors in a checkpoint's safetensors files."""
    return sum(math.prod(shape) * SIZES.get(dtype, 1) for _, dtype, shape in folder_tensors(folder))


def _llama_layer(config: Mapping[str, float | bool]) -> Shapes:
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    kv = hidden * int(config["num_key_value_heads"]) // int(config["num_attention_heads"])
    return [
        (hidden, hidden),
        (kv, hidden),
        (kv, hidden),
        (hidden, hidden),
        (inner, hidden),
        (inner, hidden),
        (hidden, inner),
    ]


def _falcon_layer(config: Mapping[str, float | bool]) -> Shapes:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    kv_heads = int(config["num_kv_heads"]) if config["new_decoder_architecture"] else 1
    qkv = (heads + 2 * kv_heads) * (hidden // heads)
    return [(qkv, hidden), (hidden, hidden), (4 * hidden, hidden), (hidden, 4 * hidden)]
