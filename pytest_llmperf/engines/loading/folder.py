"""The folder that an engine of its own reads a model from.

It is a checkpoint's, that of a built-in model converted once, or an architecture written out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from pytest_llmperf.cache_folder import cache_dir
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.quantization import Packed, scheme_of
from pytest_llmperf.engines.loading import arch
from pytest_llmperf.engines.loading.checkpoint import (
    load_errors,
    local_folder,
    require_decoder,
    stored_dtype,
    tokenizer_of,
)
from pytest_llmperf.engines.loading.written_once import save_weights, write_once
from pytest_llmperf.engines.models.architectures import ARCHITECTURES
from pytest_llmperf.engines.models.checkpoint_files import model_files
from pytest_llmperf.engines.models.content import hash_files, hash_value
from pytest_llmperf.engines.models.names import (
    WRITTEN_BYTES,
    predicted_weights_bytes,
)
from pytest_llmperf.engines.models.quantized_checkpoint import require_agreement, stored_as
from pytest_llmperf.engines.models.safetensors_header import read_json
from pytest_llmperf.errors import LoadError

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ModelFolder:
    """Where a model is, and what it is.

    `dtype` is torch's name of the dtype it is stored in; with `dummy` no weights lie there.
    `packed` says how a quantized checkpoint stores its layers.
    """

    folder: Path
    content_hash: str
    dtype: str
    tokenizer: PreTrainedTokenizerBase | None
    dummy: bool = False
    packed: Packed | None = None


def model_folder(plan: LoadPlan) -> ModelFolder:
    """Return the plan's model as a folder.

    Raises LoadError for one that cannot be read or made.
    """
    path = scheme_of(plan.quantization).path if plan.quantization is not None else ""
    if path:
        return _quantized_folder(plan, Path(path))
    if plan.model.kind == "arch":
        return architecture_folder(plan)
    with load_errors(plan, plan.model.name):
        folder = local_folder(plan)
        require_decoder(folder)
        return _checkpoint(folder, tokenizer_of(plan, folder))


def _quantized_folder(plan: LoadPlan, folder: Path) -> ModelFolder:
    """Return a quantized checkpoint with the tokenizer of the plain model.

    An architecture has none; that of the checkpoint is taken.
    """
    with load_errors(plan, plan.model.name):
        plain = folder if plan.model.kind == "arch" else local_folder(plan)
        checkpoint = _checkpoint(folder, tokenizer_of(plan, plain))
    return replace(checkpoint, packed=_packed(plan, folder))


def _checkpoint(folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> ModelFolder:
    dtype = stored_dtype(folder, read_json(folder / "config.json"))
    return ModelFolder(folder, _content_hash(folder), dtype, tokenizer)


def _content_hash(folder: Path) -> str:
    return hash_files([folder / "config.json", *model_files(folder)])


def _packed(plan: LoadPlan, folder: Path) -> Packed:
    """Return how a quantized checkpoint stores its layers.

    Raises LoadError for another format, or files that disagree with it.
    """
    packed = stored_as(folder)
    if isinstance(packed, str):
        raise LoadError(f"strategy part {plan.quantization!r}: {packed}")
    require_agreement(folder, packed)
    return packed


def architecture_folder(plan: LoadPlan, device: torch.device = _CPU) -> ModelFolder:
    """Return the folder of an `arch:` model with the weights that every engine gives it.

    They are those that are drawn on `device`. A large model has its config alone.
    """
    name, seed = plan.model.location, plan.seed
    dtype = ARCHITECTURES[name].dtype
    size = predicted_weights_bytes(plan.model, dtype) or 0
    if size > WRITTEN_BYTES:
        return _config_folder(name, seed, dtype)
    drawn_on = "" if device == _CPU else f"-{device.type}"
    folder = cache_dir() / "models" / f"arch-{name}-{seed}{drawn_on}"
    write_once(folder, lambda scratch: _save_weights(scratch, name, seed, device))
    return ModelFolder(folder, arch.content_hash(name, device, seed), dtype, None)


def _config_folder(name: str, seed: int, dtype: str) -> ModelFolder:
    """Return the folder of an architecture without weights."""
    folder = cache_dir() / "models" / f"arch-{name}-{seed}-config"
    write_once(folder, lambda scratch: _save_config(scratch, name))
    return ModelFolder(folder, _config_hash(name, seed), dtype, None, dummy=True)


def _config_hash(name: str, seed: int) -> str:
    return hash_value(
        {
            "architecture": ARCHITECTURES[name].config,
            "seed": seed,
            "weights": "vLLM's dummy weights",
        }
    )


def _save_weights(folder: Path, name: str, seed: int, device: torch.device) -> None:
    dtype = _published_dtype(name)
    model = arch.build(name, dtype=dtype, device=device, seed=seed, attention=None)
    save_weights(model, folder)


def _save_config(folder: Path, name: str) -> None:
    dtype = _published_dtype(name)
    config = arch.config_of(name)
    config.architectures = [_class_name(config, dtype)]
    config.dtype = dtype
    config.save_pretrained(folder)


def _published_dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, ARCHITECTURES[name].dtype)
    return dtype


def _class_name(config: PreTrainedConfig, dtype: torch.dtype) -> str:
    return type(arch.on_meta(config, dtype, None)).__name__
