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

_MATRIX_DIMENSIONS = 2

Shapes = list[tuple[int, int]]


def linear_shapes(model_type: str, config: Mapping[str, float | bool]) -> Shapes:
    """Return (outputs, inputs) of every linear layer of a llama or falcon of these dimensions.

    The output head is left out. Empty for a model of another type, whose layers are not known.
    """
    layer_shapes = _LAYERS.get(model_type)
    if layer_shapes is None:
        return []
    return layer_shapes(config) * int(config["num_hidden_layers"])


def folder_linear_shapes(folder: Path) -> Shapes:
    """Return (outputs, inputs) of the weights in a checkpoint that will be quantized.

    They are told by shape and name.
    """
    return [
        (shape[0], shape[1])
        for name, dtype, shape in folder_tensors(folder)
        if _is_converted(name, dtype, shape)
    ]


def _is_converted(name: str, dtype: str, shape: list[int]) -> bool:
    if len(shape) != _MATRIX_DIMENSIONS or "float" not in dtype:
        return False
    return not any(part in name for part in _NOT_CONVERTED)


def quantized_bytes(
    plain_bytes: int, dtype: str, shapes: Shapes, scheme: Scheme, device: str
) -> int:
    """Return the bytes of a model of `plain_bytes` in `dtype`, with some layers quantized.

    The layers of `shapes` are quantized by `scheme`.
    """
    before = SIZES[dtype] * sum(outputs * inputs for outputs, inputs in shapes)
    layout = "Int4OpaqueTensor" if device.partition(":")[0] == "cpu" else ""
    return plain_bytes - before + _bytes_after(scheme, shapes, layout, dtype)


def _bytes_after(scheme: Scheme, shapes: Shapes, layout: str, dtype: str) -> int:
    """Return the bytes of layers of these shapes once they are quantized."""
    return sum(
        layer_bytes(scheme, outputs, inputs, layout=layout, float_dtype=dtype).total()
        for outputs, inputs in shapes
    )


def checkpoint_bytes(folder: Path) -> int:
    """Return the bytes of all tensors in a checkpoint's safetensors files."""
    return sum(math.prod(shape) * SIZES.get(dtype, 1) for _, dtype, shape in folder_tensors(folder))


def _llama_layer(config: Mapping[str, float | bool]) -> Shapes:
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim", hidden // heads))
    q, kv = heads * head_dim, int(config["num_key_value_heads"]) * head_dim
    attention = [(q, hidden), (kv, hidden), (kv, hidden), (hidden, q)]
    mlp = [(inner, hidden), (inner, hidden), (hidden, inner)]
    return attention + mlp


def _falcon_layer(config: Mapping[str, float | bool]) -> Shapes:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    kv_heads = int(config["num_kv_heads"]) if config["new_decoder_architecture"] else 1
    qkv = (heads + 2 * kv_heads) * (hidden // heads)
    return [(qkv, hidden), (hidden, hidden), (4 * hidden, hidden), (hidden, 4 * hidden)]


_LAYERS = {
    "llama": _llama_layer,
    "mistral": _llama_layer,
    "gemma3_text": _llama_layer,
    "falcon": _falcon_layer,
}
