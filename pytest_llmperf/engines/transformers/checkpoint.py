"""Checkpoints: a folder, a Hugging Face id, a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.quantisation import scheme_of
from pytest_llmperf.engines.quantised_checkpoint import require_agreement, stored_as
from pytest_llmperf.engines.safetensors_header import folder_elements, read_json, weight_files
from pytest_llmperf.engines.transformers.builtin import converted_folder, forget_gguf
from pytest_llmperf.engines.transformers.content import hash_files
from pytest_llmperf.engines.transformers.quantise.convert import Conversion, checkpoint_conversion
from pytest_llmperf.errors import LoadError, OutOfMemory

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
PACKED_ZERO_POINTS = ".weight_zero_point"
_TEXT_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model as it was read: the model, its tokenizer if it has one, and what identifies its weights.

    `conversion` says which of its linear layers were quantised, if it was.
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


def from_quantised(plan: LoadPlan, device: torch.device) -> Source:
    """The quantised checkpoint that the plan names instead of the model's own weights; its layers stay as they are stored."""
    folder = Path(scheme_of(plan.quantisation or "").path)
    packed = stored_as(folder)
    if isinstance(packed, str):
        raise LoadError(f"strategy part {plan.quantisation!r}: {packed}")
    require_agreement(folder, packed)
    # transformers 5.23 with compressed-tensors 0.20 makes room for unpacked zero points and rejects the packed ones
    more = {} if packed.symmetric else {"ignore_mismatched_sizes": True}
    source = _read_folder(plan, device, folder, **more)
    with load_errors(plan, str(folder)):
        return replace(source, conversion=checkpoint_conversion(plan, source.model, packed, folder))


def from_hub(plan: LoadPlan, device: torch.device) -> Source:
    """A Hugging Face id: from the local cache, downloaded first where the network allows it."""
    return _read_folder(plan, device, _snapshot(plan))


def from_gguf(plan: LoadPlan, device: torch.device) -> Source:
    """A GGUF file, dequantised. Its weights count as float32: that is what dequantising them gives."""
    file = Path(plan.model.location)
    dtype = "float32" if plan.weights_dtype == "auto" else plan.weights_dtype
    with load_errors(plan, str(file)):
        model = forget_gguf(_from_pretrained(plan, device, file.parent, dtype, gguf_file=file.name))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return Source(model=model, tokenizer=tokenizer, content_hash=hash_files([file]), checkpoint_dtype="float32")


def _read_folder(plan: LoadPlan, device: torch.device, folder: Path, **more: bool) -> Source:
    config = read_json(folder / "config.json")
    stored = stored_dtype(folder, config)
    dtype = stored if plan.weights_dtype == "auto" else plan.weights_dtype
    with load_errors(plan, str(folder)):
        model = _from_pretrained(plan, device, folder, dtype, **more)
        tokenizer = tokenizer_of(plan, folder)
    files = weight_files(folder) or sorted(folder.glob("*.bin"))
    return Source(
        model=model, tokenizer=tokenizer, content_hash=hash_files([folder / "config.json", *files]), checkpoint_dtype=stored
    )


def stored_dtype(folder: Path, config: dict[str, Any]) -> str:
    """The floating dtype of most elements of the weight files; the config's where the files do not say (.bin)."""
    floating = {dtype: n for dtype, n in folder_elements(folder).items() if "float" in dtype}
    if floating:
        return max(floating, key=lambda dtype: floating[dtype])
    if not any(folder.glob("*.bin")):
        raise LoadError(
            f"{folder} holds no weight files (*.safetensors, *.bin). Download or save the model again, or name another."
        )
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _from_pretrained(plan: LoadPlan, device: torch.device, folder: Path, dtype: str, **more: str | bool) -> Any:
    """The model on its device in `dtype`. A tensor that the checkpoint lacks is an error, never a random weight."""
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
    wrong = sorted(key for key, *_ in info["mismatched_keys"] if not key.endswith(PACKED_ZERO_POINTS))
    if wrong:
        raise LoadError(f"{folder}: {len(wrong)} tensors have other shapes than the config says: {', '.join(wrong[:3])}, …")
    if missing:
        raise LoadError(f"{folder}: {len(missing)} tensors of {type(model).__name__} are missing: {', '.join(missing[:3])}, …")
    return model


def local_folder(plan: LoadPlan) -> Path:
    """The folder that holds a built-in model, a folder's or a hub id's; converted or downloaded first where that is needed."""
    if plan.model.kind == "hub":
        return _snapshot(plan)
    return converted_folder(plan.model.location) if plan.model.kind == "builtin" else Path(plan.model.location)


def tokenizer_of(plan: LoadPlan, folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a checkpoint's folder, or None where it has no files of one."""
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=plan.model.trust_remote_code)
    return tokenizer


def _snapshot(plan: LoadPlan) -> Path:
    """The files of a hub id in the local cache. Raises LoadError if they are neither there nor to be had."""
    ref = plan.model
    code = ["*.py"] if ref.trust_remote_code else []
    try:
        folder = Path(
            snapshot_download(ref.location, revision=ref.revision, allow_patterns=[*_TEXT_FILES, *code, "*.safetensors"])
        )
        if not any(folder.glob("*.safetensors")):
            snapshot_download(ref.location, revision=ref.revision, allow_patterns=["pytorch_model*.bin"])
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise LoadError(
            f"model {ref.name!r}: {ref.location} is neither in the cache {constants.HF_HUB_CACHE} nor could be downloaded: "
            f"{str(error).strip()} Check the id and the network, download it where there is one, or name a local folder.",
        ) from error
    return folder


@contextmanager
def load_errors(plan: LoadPlan, what: str) -> Iterator[None]:
    """Errors of transformers as ours: LoadError with the place and the next step, OutOfMemory as itself."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError) as error:
        if "can't allocate memory" in str(error):
            raise OutOfMemory(f"model {plan.model.name!r}: no memory left while loading {what}: {error}") from error
        raise LoadError(f"model {plan.model.name!r}: {what} could not be loaded: {error}. {_next_step(error)}") from error


def _next_step(error: Exception) -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return "It needs code that comes with the checkpoint: read it, then ask for trust_remote_code=True in the marker."
    if isinstance(error, ImportError):
        return "Install what is missing, or leave out the strategy part that needs it."
    return "Check the files and the installed transformers; 'llmperf doctor' prints the versions."
