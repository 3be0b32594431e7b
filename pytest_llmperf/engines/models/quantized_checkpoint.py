"""Quantized checkpoints in a folder: what their config.json says, told before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_llmperf.core.quantization import Packed, Scheme
from pytest_llmperf.engines.models.safetensors_header import folder_tensors, read_json
from pytest_llmperf.errors import LoadError

_UNREADABLE = (
    "this engine reads the compressed-tensors format, which llmcompressor's GPTQ, AWQ and round-to-nearest write. "
    "No loader for the other format is at hand: "
)
_WAY_OUT = {
    "awq": "convert it by compressed_tensors.entrypoints.convert with its AutoAWQConverter (compressed-tensors 0.16 on)."
}
_OTHERWISE = "convert it, or quantize the model again with llmcompressor."


def stored_as(folder: Path) -> Packed | str:
    """How the checkpoint in `folder` stores its weights, or why this engine cannot read it.

    Raises LoadError for no JSON.
    """
    config = read_json(folder / "config.json").get("quantization_config")
    if not isinstance(config, dict):
        return (
            f"{folder / 'config.json'} has no quantization_config: the checkpoint is not quantized."
        )
    method = config.get("quant_method")
    if method != "compressed-tensors":
        return f"{folder} is in {method!r} format, and {_UNREADABLE}{_WAY_OUT.get(str(method), _OTHERWISE)}"
    groups = list((config.get("config_groups") or {}).values())
    if len(groups) != 1 or not isinstance(groups[0], dict) or not groups[0].get("weights"):
        return f"{folder} has {len(groups)} groups of quantized layers, one with weights is needed."
    return _packed(groups[0], str(config.get("format")))


def disagreement(scheme: Scheme, packed: Packed) -> str | None:
    """Why a checkpoint is not what the strategy part says it is, or None."""
    wanted_inputs = scheme.method == "w8a8"
    if (
        packed.bits == scheme.row.bits
        and packed.inputs == wanted_inputs
        and packed.format in scheme.row.formats
    ):
        return None
    inputs = "int8 inputs" if wanted_inputs else "plain inputs"
    return f"the checkpoint holds {packed}; {scheme.method!r} means {scheme.row.bits}-bit weights and {inputs}."


def require_agreement(folder: Path, packed: Packed) -> None:
    """Raise LoadError where the tensors in the weight files have other shapes than the config's format gives them."""
    shapes = {name: shape for name, _, shape in folder_tensors(folder)}
    suffix = ".weight_packed" if packed.format == "pack-quantized" else ".weight"
    scaled = [
        name.removesuffix(".weight_scale") for name in shapes if name.endswith(".weight_scale")
    ]
    wrong = [
        reason
        for layer in scaled
        if (reason := _wrong_shape(layer, shapes, packed, suffix)) is not None
    ]
    if wrong or not scaled:
        found = (
            f"{wrong[0]} ({len(wrong)} of {len(scaled)} layers)"
            if wrong
            else "none of its tensors is called weight_scale"
        )
        raise LoadError(
            f"{folder}: the config says {packed}, and the weight files disagree: {found}. "
            "Save the checkpoint again, with the config that it was quantized with.",
        )


def _wrong_shape(
    layer: str, shapes: dict[str, list[int]], packed: Packed, suffix: str
) -> str | None:
    stored = shapes.get(layer + suffix)
    if stored is None:
        return f"{layer + suffix} is missing"
    inputs = stored[1] * 32 // packed.bits if packed.format == "pack-quantized" else stored[1]
    wanted = [stored[0], -(-inputs // packed.group) if packed.group else 1]
    scale = shapes[layer + ".weight_scale"]
    return (
        None
        if scale == wanted
        else f"{layer}.weight_scale is {scale}, {inputs} inputs need {wanted}"
    )


def _packed(group: dict[str, Any], format_name: str) -> Packed:
    weights = group["weights"]
    return Packed(
        format=str(group.get("format") or format_name),
        bits=int(weights.get("num_bits") or 0),
        group=int(weights.get("group_size") or 0) if weights.get("strategy") == "group" else 0,
        symmetric=bool(weights.get("symmetric", True)),
        inputs=bool(group.get("input_activations")),
    )
