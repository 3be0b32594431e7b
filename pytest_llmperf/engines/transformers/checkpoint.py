"""Checkpoints: a folder, a Hugging Face id, a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.quantization import scheme_of
from pytest_llmperf.engines.loading.builtin import converted_folder, forget_gguf
from pytest_llmperf.engines.loading.checkpoint import (
    _snapshot,
    load_errors,
    stored_dtype,
    tokenizer_of,
)
from pytest_llmperf.engines.models.content import hash_files
from pytest_llmperf.engines.models.quantized_checkpoint import require_agreement, stored_as
from pytest_llmperf.engines.models.safetensors_header import read_json, weight_files
from pytest_llmperf.engines.transformers.quantize.convert import Conversion, checkpoint_conversion
from pytest_llmperf.errors import LoadError

PACKED_ZERO_POINTS = ".weight_zero_point"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model as it was read: the model, its tokenizer if it has one, and what identifies its weights.

    `conversion` says which of its linear layers were quantized, if it was.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase | None
    content_hash: str
    checkpoint_dtype: str
    conversion: Conversion | None = None


def from_folder(plan: LoadPlan, device: torch.device) -> Source:
    """A folder with config.json and weights."""
    return _read_folder(plan, device, Path(plan.model.location))


def from_builtin(plan: LoadPlan, device: torch.device) -> Source:
    """A built-in model, from its converted folder."""
    with load_errors(plan, f"the conversion of {plan.model.name}"):
        folder = converted_folder(plan.model.location)
    return _read_folder(plan, device, folder)


def from_quantized(plan: LoadPlan, device: torch.device) -> Source:
    """The quantized checkpoint that the plan names instead of the model's own weights.

    Its layers stay as they are stored.
    """
    folder = Path(scheme_of(plan.quantization or "").path)
    packed = stored_as(folder)
    if isinstance(packed, str):
        raise LoadError(f"strategy part {plan.quantization!r}: {packed}")
    require_agreement(folder, packed)
    # transformers 5.23 with compressed-tensors 0.20 makes room for unpacked zero points and rejects
    # the packed ones
    more = {} if packed.symmetric else {"ignore_mismatched_sizes": True}
    source = _read_folder(plan, device, folder, **more)
    with load_errors(plan, str(folder)):
        return replace(source, conversion=checkpoint_conversion(plan, source.model, packed, folder))


def from_hub(plan: LoadPlan, device: torch.device) -> Source:
    """A Hugging Face id: from the local cache, downloaded first where the network allows it."""
    return _read_folder(plan, device, _snapshot(plan))


def from_gguf(plan: LoadPlan, device: torch.device) -> Source:
    """A GGUF file, dequantized. Its weights count as float32: that is what dequantizing them gives."""
    file = Path(plan.model.location)
    dtype = "float32" if plan.weights_dtype == "auto" else plan.weights_dtype
    with load_errors(plan, str(file)):
        model = forget_gguf(_from_pretrained(plan, device, file.parent, dtype, gguf_file=file.name))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return Source(
        model=model,
        tokenizer=tokenizer,
        content_hash=hash_files([file]),
        checkpoint_dtype="float32",
    )


def _read_folder(plan: LoadPlan, device: torch.device, folder: Path, **more: bool) -> Source:
    config = read_json(folder / "config.json")
    stored = stored_dtype(folder, config)
    dtype = stored if plan.weights_dtype == "auto" else plan.weights_dtype
    with load_errors(plan, str(folder)):
        model = _from_pretrained(plan, device, folder, dtype, **more)
        tokenizer = tokenizer_of(plan, folder)
    files = weight_files(folder) or sorted(folder.glob("*.bin"))
    return Source(
        model=model,
        tokenizer=tokenizer,
        content_hash=hash_files([folder / "config.json", *files]),
        checkpoint_dtype=stored,
    )


def _from_pretrained(
    plan: LoadPlan, device: torch.device, folder: Path, dtype: str, **more: str | bool
) -> Any:
    """The model on its device in `dtype`.

    A tensor that the checkpoint lacks is an error, never a random weight.
    """
    attention = {} if plan.attention is None else {"attn_implementation": plan.attention}
    placed = {} if device.type == "cpu" else {"device_map": {"": device}}
    auto: Any = AutoModelForCausalLM  # its types do not know output_loading_info
    model, info = auto.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        trust_remote_code=plan.model.trust_remote_code,
        output_loading_info=True,
        **attention,
        **placed,
        **more,
    )
    missing = sorted(info["missing_keys"])
    wrong = sorted(
        key for key, *_ in info["mismatched_keys"] if not key.endswith(PACKED_ZERO_POINTS)
    )
    if wrong:
        raise LoadError(
            f"{folder}: {len(wrong)} tensors have other shapes than the config says: {', '.join(wrong[:3])}, …"
        )
    if missing:
        raise LoadError(
            f"{folder}: {len(missing)} tensors of {type(model).__name__} are missing: {', '.join(missing[:3])}, …"
        )
    return model
