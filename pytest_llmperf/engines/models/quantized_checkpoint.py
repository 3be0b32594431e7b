"""Quantized checkpoints in a folder: what their config.json says, without being loaded.

Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_llmperf.core.quantization import Packed, Scheme
from pytest_llmperf.engines.models.safetensors_header import folder_tensors, read_json
from pytest_llmperf.errors import LoadError

_UNREADABLE = (
    "this engine reads the compressed-tensors format, which llmcompressor's GPTQ, AWQ and "
    "round-to-nearest write. No loader for the other format is at hand: "
)
_WAY_OUT = {
    "awq": "convert it by compressed_tensors.entrypoints.convert with its AutoAWQConverter "
    "(compressed-tensors 0.16 on)."
}
_OTHERWISE = "convert it, or quantize the model again with llmcompressor."

_SCALE = ".weight_scale"
_PACKED_BITS = 32
"""Bits of an integer into which a packed checkpoint puts several weights."""


def stored_as(folder: Path) -> Packed | str:
    """Return how the checkpoint in `folder` stores its weights, or why it cannot be read.

    Raises LoadError where a file is not JSON.
    """
    config = read_json(folder / "config.json").get("quantization_config")
    if not isinstance(config, dict):
        return _not_quantized(folder)
    method = config.get("quant_method")
    if method != "compressed-tensors":
        return _in_unreadable_format(folder, method)
    return _stored_in_groups(folder, config)


def _not_quantized(folder: Path) -> str:
    return f"{folder / 'config.json'} has no quantization_config: the checkpoint is not quantized."


def _in_unreadable_format(folder: Path, method: object) -> str:
    way_out = _WAY_OUT.get(str(method), _OTHERWISE)
    return f"{folder} is in {method!r} format, and {_UNREADABLE}{way_out}"


def _stored_in_groups(folder: Path, config: Mapping[str, Any]) -> Packed | str:
    groups = list((config.get("config_groups") or {}).values())
    if len(groups) != 1 or not _has_weights(groups[0]):
        return f"{folder} has {len(groups)} groups of quantized layers, one with weights is needed."
    return _packed(groups[0], str(config.get("format")))


def _has_weights(group: object) -> bool:
    return isinstance(group, dict) and bool(group.get("weights"))


def disagreement(scheme: Scheme, packed: Packed) -> str | None:
    """Return why a checkpoint is not what the strategy part says it is, or None."""
    same_inputs = packed.inputs == _has_int8_inputs(scheme)
    if same_inputs and _has_weights_of(scheme, packed):
        return None
    return f"the checkpoint holds {packed}; {_meaning(scheme)}"


def _has_weights_of(scheme: Scheme, packed: Packed) -> bool:
    """Whether weights are stored in the format and the bits of a scheme."""
    return packed.bits == scheme.row.bits and packed.format in scheme.row.formats


def _has_int8_inputs(scheme: Scheme) -> bool:
    return scheme.method == "w8a8"


def _meaning(scheme: Scheme) -> str:
    inputs = "int8 inputs" if _has_int8_inputs(scheme) else "plain inputs"
    return f"{scheme.method!r} means {scheme.row.bits}-bit weights and {inputs}."


def require_agreement(folder: Path, packed: Packed) -> None:
    """Raise LoadError where tensors in the weight files contradict the config.

    Their shapes have to be those of the config's format.
    """
    shapes = {name: shape for name, _, shape in folder_tensors(folder)}
    reason = _wrong_shapes(_quantized_layers(shapes), shapes, packed)
    if reason is not None:
        raise LoadError(
            f"{folder}: the config says {packed}, and the weight files disagree: {reason}. "
            "Save the checkpoint again, with the config that it was quantized with.",
        )


def _quantized_layers(shapes: Mapping[str, list[int]]) -> list[str]:
    return [name.removesuffix(_SCALE) for name in shapes if name.endswith(_SCALE)]


def _wrong_shapes(layers: list[str], shapes: Mapping[str, list[int]], packed: Packed) -> str | None:
    if not layers:
        return "none of its tensors is called weight_scale"
    reasons = [_wrong_shape(layer, shapes, packed) for layer in layers]
    wrong = [reason for reason in reasons if reason is not None]
    return f"{wrong[0]} ({len(wrong)} of {len(layers)} layers)" if wrong else None


def _wrong_shape(layer: str, shapes: Mapping[str, list[int]], packed: Packed) -> str | None:
    is_packed = packed.format == "pack-quantized"
    weight = layer + (".weight_packed" if is_packed else ".weight")
    if weight not in shapes:
        return f"{weight} is missing"
    outputs, columns = shapes[weight][:2]
    inputs = columns * _PACKED_BITS // packed.bits if is_packed else columns
    needed, scale = _scale_shape(packed, outputs, inputs), shapes[layer + _SCALE]
    if scale == needed:
        return None
    return f"{layer}{_SCALE} is {scale}, {inputs} inputs need {needed}"


def _scale_shape(packed: Packed, outputs: int, inputs: int) -> list[int]:
    """Return the shape of a layer's scales: one a row, or one for each group of inputs."""
    return [outputs, -(-inputs // packed.group) if packed.group else 1]


def _packed(group: dict[str, Any], format_name: str) -> Packed:
    weights = group["weights"]
    grouped = weights.get("strategy") == "group"
    return Packed(
        format=str(group.get("format") or format_name),
        bits=int(weights.get("num_bits") or 0),
        group=int(weights.get("group_size") or 0) if grouped else 0,
        symmetric=bool(weights.get("symmetric", True)),
        inputs=bool(group.get("input_activations")),
    )
