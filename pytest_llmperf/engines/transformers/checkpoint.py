"""Checkpoints: a folder, a Hugging Face id, a GGUF file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.quantization import Packed, scheme_of
from pytest_llmperf.engines.loading.builtin import converted_folder, forget_gguf
from pytest_llmperf.engines.loading.checkpoint import (
    _snapshot,
    load_errors,
    mended_config,
    require_decoder,
    stored_dtype,
    tokenizer_of,
)
from pytest_llmperf.engines.models.checkpoint_files import (
    ADAPTER_CONFIG,
    files_not_read,
    model_files,
)
from pytest_llmperf.engines.models.content import hash_files
from pytest_llmperf.engines.models.quantized_checkpoint import require_agreement, stored_as
from pytest_llmperf.engines.models.safetensors_header import read_json
from pytest_llmperf.engines.transformers.observed.unasked import on_dtype
from pytest_llmperf.engines.transformers.quantize.convert import Conversion, checkpoint_conversion
from pytest_llmperf.errors import LoadError

_NO_ADAPTER = "no-adapter-was-asked-for"
"""A folder that is not there: where transformers looks for an adapter to apply unasked."""

PACKED_ZERO_POINTS = ".weight_zero_point"


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """A model as its source gives it: with its tokenizer if it has one, and its weights' identity.

    `conversion` says which of its linear layers were quantized, if any were. `not_read` says what
    lies beside the model and was not read, `unasked` what the loader decided by itself. `held_hash`
    is of what a model without files computes with beside its parameters.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase | None
    content_hash: str
    checkpoint_dtype: str
    conversion: Conversion | None = None
    not_read: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()
    held_hash: str = ""


def from_folder(plan: LoadPlan, device: torch.device) -> SourceModel:
    """Read a folder with config.json and weights."""
    return read_folder(plan, device, Path(plan.model.location))


def from_builtin(plan: LoadPlan, device: torch.device) -> SourceModel:
    """Read a built-in model from its converted folder."""
    with load_errors(plan, f"the conversion of {plan.model.name}"):
        folder = converted_folder(plan.model.location)
    return read_folder(plan, device, folder)


def from_quantized(plan: LoadPlan, device: torch.device) -> SourceModel:
    """Read the quantized checkpoint that the plan names instead of the model's own weights.

    Its layers stay as they are stored. Raises LoadError for a checkpoint that cannot be read so.
    """
    folder = Path(scheme_of(plan.quantization or "").path)
    packed = _packed_as(plan, folder)
    # transformers 5.23 with compressed-tensors 0.20 makes room for unpacked zero points and rejects
    # the packed ones.
    size_options = {} if packed.symmetric else {"ignore_mismatched_sizes": True}
    source = read_folder(plan, device, folder, **size_options)
    with load_errors(plan, str(folder)):
        return replace(source, conversion=checkpoint_conversion(plan, source.model, packed, folder))


def _packed_as(plan: LoadPlan, folder: Path) -> Packed:
    packed = stored_as(folder)
    if isinstance(packed, str):
        raise LoadError(f"strategy part {plan.quantization!r}: {packed}")
    require_agreement(folder, packed)
    return packed


def from_hub(plan: LoadPlan, device: torch.device) -> SourceModel:
    """Read a Hugging Face id from the local cache, downloaded first where the network allows it."""
    return read_folder(plan, device, _snapshot(plan))


def from_gguf(plan: LoadPlan, device: torch.device) -> SourceModel:
    """Read a GGUF file and dequantize it.

    Its weights count as float32, because that is what dequantizing them gives.
    """
    file = Path(plan.model.location)
    dtype = weights_dtype(plan, "float32")
    with load_errors(plan, str(file)):
        model = forget_gguf(_from_pretrained(plan, device, file.parent, dtype, gguf_file=file.name))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return SourceModel(
        model=model,
        tokenizer=tokenizer,
        content_hash=hash_files([file]),
        checkpoint_dtype="float32",
    )


def read_folder(
    plan: LoadPlan, device: torch.device, folder: Path, **options: str | bool
) -> SourceModel:
    """Read a folder; `options` are arguments of from_pretrained."""
    require_decoder(folder)
    config = read_json(folder / "config.json")
    checkpoint_dtype = stored_dtype(folder, config)
    dtype = weights_dtype(plan, checkpoint_dtype)
    with load_errors(plan, str(folder)):
        model = _from_pretrained(plan, device, folder, dtype, **options)
        tokenizer = tokenizer_of(plan, folder)
    return SourceModel(
        model=model,
        tokenizer=tokenizer,
        content_hash=folder_hash(folder),
        checkpoint_dtype=checkpoint_dtype,
        not_read=files_not_read(folder),
        unasked=on_dtype(plan, checkpoint_dtype, config),
    )


def folder_hash(folder: Path) -> str:
    """Return the hash of a folder's config and weights: of the files that are read."""
    return hash_files([folder / "config.json", *model_files(folder)])


def weights_dtype(plan: LoadPlan, checkpoint_dtype: str) -> torch.dtype:
    """Return the dtype that the plan loads weights in; for "auto" that of the checkpoint."""
    name = checkpoint_dtype if plan.weights_dtype == "auto" else plan.weights_dtype
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _from_pretrained(
    plan: LoadPlan, device: torch.device, folder: Path, dtype: torch.dtype, **options: str | bool
) -> Any:
    """Return the model on its device in `dtype`, without an adapter that lies in its folder.

    A tensor that the checkpoint lacks is an error, never a random weight.
    """
    attention = {} if plan.attention is None else {"attn_implementation": plan.attention}
    is_placed = device.type == "cpu" or "tp_plan" in options  # a plan places its ranks' parts
    placement = {} if is_placed else {"device_map": {"": device}}
    mended = {} if "gguf_file" in options else _mended(plan, folder)
    auto: Any = AutoModelForCausalLM  # its types do not know output_loading_info
    model, loading_info = auto.from_pretrained(
        folder,
        dtype=dtype,
        trust_remote_code=plan.model.trust_remote_code,
        output_loading_info=True,
        adapter_kwargs={"subfolder": _NO_ADAPTER},
        **mended,
        **attention,
        **placement,
        **options,
    )
    _require_no_adapter(folder, model)
    _require_all_tensors(folder, model, loading_info)
    return model


def _mended(plan: LoadPlan, folder: Path) -> dict[str, Any]:
    """Return the config as an argument of from_pretrained, where the folder's cannot be used."""
    config = mended_config(folder, trust_remote_code=plan.model.trust_remote_code)
    return {} if config is None else {"config": config}


def _require_no_adapter(folder: Path, model: Any) -> None:
    """Raise LoadError where transformers applied an adapter that nobody asked for."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise LoadError(
            f"{folder}: transformers applied the adapter that lies in this folder, which the "
            f"strategy does not ask for. Move {ADAPTER_CONFIG} elsewhere, and ask for it by 'lora'."
        )


def _require_all_tensors(folder: Path, model: Any, loading_info: Any) -> None:
    """Raise LoadError unless the checkpoint had each tensor of `model`, in its shape."""
    mismatched_keys = [key for key, *_ in loading_info["mismatched_keys"]]
    mismatched = [key for key in mismatched_keys if not key.endswith(PACKED_ZERO_POINTS)]
    if mismatched:
        raise LoadError(
            f"{folder}: {len(mismatched)} tensors have other shapes than the config says: "
            f"{first_names(mismatched)}"
        )
    missing = loading_info["missing_keys"]
    if missing:
        raise LoadError(
            f"{folder}: {len(missing)} tensors of {type(model).__name__} are missing: "
            f"{first_names(missing)}"
        )


def first_names(names: Iterable[str]) -> str:
    """Return the first three names, in their order by letters, for a message."""
    return f"{', '.join(sorted(names)[:3])}, …"
