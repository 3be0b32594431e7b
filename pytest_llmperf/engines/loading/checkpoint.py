"""A checkpoint's files, its tokenizer and stored dtype, and its loading errors as ours."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.loading.builtin import converted_folder
from pytest_llmperf.engines.models.checkpoint_files import bin_files
from pytest_llmperf.engines.models.padding import with_usable_padding
from pytest_llmperf.engines.models.safetensors_header import folder_elements, read_json
from pytest_llmperf.errors import LoadError, OutOfMemory

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "spiece.model",
)
_TEXT_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]

_ALL_CLASSES = "Model type should be one of"

_LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    AssertionError,
    IndexError,
    SafetensorError,
    StrictDataclassError,
    UnpicklingError,
)
"""What transformers raises for a checkpoint that cannot be loaded."""


def stored_dtype(folder: Path, config: dict[str, Any]) -> str:
    """Return the floating dtype of most elements of the weight files.

    It is the config's where no file holds floats.
    """
    elements = folder_elements(folder)
    pickled = [] if elements else bin_files(folder)
    if not (elements or pickled):
        raise LoadError(
            f"{folder} holds no weight files (model.safetensors, pytorch_model.bin or an index of "
            "either). Download or save the model again, or name another.",
        )
    for file in pickled:
        elements += _bin_elements(file)
    floating = [dtype for dtype in elements if "float" in dtype]
    if floating:
        return max(floating, key=lambda dtype: elements[dtype])
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _bin_elements(file: Path) -> Counter[str]:
    """Return the elements of a pickled weight file by dtype; its values are not read."""
    tensors = torch.load(file, map_location="meta", weights_only=True)
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return counts


def config_of(folder: Path, *, trust_remote_code: bool) -> Any:
    """Return transformers' config of a folder, with padding that an embedding can take."""
    mended = mended_config(folder, trust_remote_code=trust_remote_code)
    if mended is not None:
        return mended
    return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)


def mended_config(folder: Path, *, trust_remote_code: bool) -> Any | None:
    """Return the config of a folder whose config.json cannot be used as it is; else None.

    transformers rejects a list of ids for padding, and torch an id past the embedding.
    """
    file = folder / "config.json"
    if not file.is_file():
        return None
    values = read_json(file)
    mended = with_usable_padding(values)
    if mended == values:
        return None
    with TemporaryDirectory() as scratch:
        for code in folder.glob("*.py"):
            shutil.copy(code, scratch)
        (Path(scratch) / file.name).write_text(json.dumps(mended))
        config = AutoConfig.from_pretrained(scratch, trust_remote_code=trust_remote_code)
    config.name_or_path = str(folder)
    return config


def quantized_by(config: Any) -> str:
    """Return the method that a checkpoint was quantized by, as its config says; empty for none."""
    stored = getattr(config, "quantization_config", None)
    if not stored:
        return ""
    values = stored if isinstance(stored, dict) else stored.to_dict()
    method = values.get("quant_method") or "an unnamed method"
    return str(getattr(method, "value", method))


def require_decoder(folder: Path) -> None:
    """Raise LoadError for an encoder-decoder."""
    config = read_json(folder / "config.json")
    if config.get("is_encoder_decoder"):
        kind = config.get("model_type", "of a kind without a name")
        raise LoadError(
            f"{folder} is an encoder-decoder ({kind}); decoders are measured. "
            "Name a causal language model."
        )


def local_folder(plan: LoadPlan) -> Path:
    """Return the folder that holds a built-in model, a folder's or a hub id's.

    The model is converted or downloaded first where that is needed.
    """
    if plan.model.kind == "hub":
        return _snapshot(plan)
    if plan.model.kind == "builtin":
        return converted_folder(plan.model.location)
    return Path(plan.model.location)


def tokenizer_of(plan: LoadPlan, folder: Path) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer in a checkpoint's folder, or None where it has no files of one."""
    if not _has_tokenizer(folder):
        return None
    trust = plan.model.trust_remote_code
    config = mended_config(folder, trust_remote_code=trust)
    mended = {} if config is None else {"config": config}
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=trust, **mended
    )
    return tokenizer


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _snapshot(plan: LoadPlan) -> Path:
    """Return the files of a hub id in the local cache.

    Raises LoadError if they are neither there nor to be had.
    """
    ref = plan.model
    try:
        return _download(ref)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise LoadError(_not_to_be_had(ref, error)) from error


def _not_to_be_had(ref: ModelRef, error: Exception) -> str:
    return (
        f"model {ref.name!r}: there is no folder of that name, no snapshot of it in "
        f"{constants.HF_HUB_CACHE}, and it could not be downloaded ({_reason(error)}). Check the "
        "name and the network, download it where there is one, or name a local folder."
    )


def _reason(error: Exception) -> str:
    """Return in one line why the Hub gave nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first, *rest = lines or [type(error).__name__]
    why = next((line for line in rest if "ot Found" in line), "")
    return " ".join((first.removeprefix("Got: "), why)).strip(" .")


def _download(ref: ModelRef) -> Path:
    """Download texts and safetensors, and .bin files where there are no safetensors."""
    code = ["*.py"] if ref.trust_remote_code else []
    patterns = [*_TEXT_FILES, *code, "*.safetensors"]
    folder = Path(snapshot_download(ref.location, revision=ref.revision, allow_patterns=patterns))
    if not any(folder.glob("*.safetensors")):
        snapshot_download(
            ref.location, revision=ref.revision, allow_patterns=["pytorch_model*.bin"]
        )
    return folder


@contextmanager
def load_errors(plan: LoadPlan, what: str) -> Iterator[None]:
    """Raise errors of transformers as ours.

    They become LoadError with the place and the next step; OutOfMemory stays itself.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except _LOADING_ERRORS as error:
        model = f"model {plan.model.name!r}"
        if "can't allocate memory" in str(error):
            raise OutOfMemory(f"{model}: no memory left while loading {what}: {error}") from error
        raise LoadError(
            f"{model}: {what} could not be loaded: {_in_short(error)}. {_next_step(error)}"
        ) from error


def _in_short(error: Exception) -> str:
    """Return an error's words without transformers' list of all its config classes."""
    return str(error).partition(_ALL_CLASSES)[0].strip().rstrip(".")


def _next_step(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            "It needs code that comes with the checkpoint: read it, "
            "then ask for trust_remote_code=True in the marker."
        )
    if isinstance(error, ImportError):
        return "Install what is missing, or leave out the strategy part that needs it."
    return "Check the files and the installed transformers; 'llmperf doctor' prints the versions."
