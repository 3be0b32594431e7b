"""Quantised checkpoints in a folder: what their config.json says, told before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_llmperf.core.quantisation import Packed, Scheme
from pytest_llmperf.engines.safetensors_header import read_json

_UNREADABLE = (
    "this engine reads the compressed-tensors format, which llmcompressor's GPTQ, AWQ and round-to-nearest write. "
    "No loader for the other format is at hand: convert it, or quantise the model again with llmcompressor."
)


def stored_as(folder: Path) -> Packed | str:
    """How the checkpoint in `folder` stores its weights, or why this engine cannot read it. Raises LoadError for no JSON."""
    config = read_json(folder / "config.json").get("quantization_config")
    if not isinstance(config, dict):
        return f"{folder / 'config.json'} has no quantization_config: the checkpoint is not quantised."
    method = config.get("quant_method")
    if method != "compressed-tensors":
        return f"{folder} is in {method!r} format, and {_UNREADABLE}"
    groups = list((config.get("config_groups") or {}).values())
    if len(groups) != 1 or not isinstance(groups[0], dict) or not groups[0].get("weights"):
        return f"{folder} has {len(groups)} groups of quantised layers, one with weights is needed."
    return _packed(groups[0], str(config.get("format")))


def disagreement(scheme: Scheme, packed: Packed) -> str | None:
    """Why a checkpoint is not what the strategy part says it is, or None."""
    wanted_inputs = scheme.method == "w8a8"
    if packed.bits == scheme.row.bits and packed.inputs == wanted_inputs and packed.format in scheme.row.formats:
        return None
    inputs = "int8 inputs" if wanted_inputs else "plain inputs"
    return f"the checkpoint holds {packed}; {scheme.method!r} means {scheme.row.bits}-bit weights and {inputs}."


def _packed(group: dict[str, Any], format_name: str) -> Packed:
    weights = group["weights"]
    return Packed(
        format=str(group.get("format") or format_name),
        bits=int(weights.get("num_bits") or 0),
        group=int(weights.get("group_size") or 0) if weights.get("strategy") == "group" else 0,
        symmetric=bool(weights.get("symmetric", True)),
        inputs=bool(group.get("input_activations")),
    )
