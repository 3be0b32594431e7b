"""The folder that an engine of its own reads a model from: a checkpoint's, a built-in model converted once, or an architecture written out."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.quantization import Packed, scheme_of
from pytest_llmperf.engines.loading import arch
from pytest_llmperf.engines.loading.checkpoint import (
    load_errors,
    local_folder,
    stored_dtype,
    tokenizer_of,
)
from pytest_llmperf.engines.models.content import cache_dir, hash_files, hash_value
from pytest_llmperf.engines.models.names import ARCHITECTURES, predicted_weights_bytes
from pytest_llmperf.engines.models.quantized_checkpoint import require_agreement, stored_as
from pytest_llmperf.engines.models.safetensors_header import read_json, weight_files
from pytest_llmperf.errors import LoadError

WRITTEN_BYTES = 2**30
"""Architectures up to this size are written out with the weights that every engine gives them.

Larger ones get vLLM's own random weights, made on the device: nothing but speed and memory is asked
of them.
"""


@dataclass(frozen=True)
class Source:
    """Where a model is, and what it is.

    `dtype` is torch's name of the dtype it is stored in; `dummy`: no weights lie there.

    `packed` says how a quantized checkpoint stores its layers.
    """

    folder: Path
    content_hash: str
    dtype: str
    tokenizer: PreTrainedTokenizerBase | None
    dummy: bool = False
    packed: Packed | None = None


def source_of(plan: LoadPlan) -> Source:
    """The plan's model as a folder. Raises LoadError for one that cannot be read or made."""
    path = scheme_of(plan.quantization).path if plan.quantization is not None else ""
    if plan.model.kind == "arch" and not path:
        return architecture_folder(plan)
    with load_errors(plan, plan.model.name):
        plain = Path(path) if plan.model.kind == "arch" else local_folder(plan)
        tokenizer = tokenizer_of(plan, plain)
        folder = Path(path) if path else plain
        stored = stored_dtype(folder, read_json(folder / "config.json"))
        files = weight_files(folder) or sorted(folder.glob("*.bin"))
        content = hash_files([folder / "config.json", *files])
    return Source(
        folder, content, stored, tokenizer, packed=_packed(plan, folder) if path else None
    )


def _packed(plan: LoadPlan, folder: Path) -> Packed:
    """How a quantized checkpoint stores its layers.

    Raises LoadError for another format, or files that disagree with it.
    """
    packed = stored_as(folder)
    if isinstance(packed, str):
        raise LoadError(f"strategy part {plan.quantization!r}: {packed}")
    require_agreement(folder, packed)
    return packed


def architecture_folder(plan: LoadPlan) -> Source:
    """The folder of an `arch:` model: with the weights that every engine gives it, or its config alone, where it is large."""
    name, dtype = plan.model.location, ARCHITECTURES[plan.model.location].dtype
    size = predicted_weights_bytes(plan.model, dtype) or 0
    folder = cache_dir() / "models" / f"arch-{name}-{plan.seed}"
    if size <= WRITTEN_BYTES:
        content = arch.content_hash(name, torch.device("cpu"), plan.seed)
        return Source(_made(folder, plan, weights=True), content, dtype, None)
    content = hash_value(
        {
            "architecture": ARCHITECTURES[name].config,
            "seed": plan.seed,
            "weights": "vLLM's dummy weights",
        }
    )
    return Source(
        _made(folder.with_name(f"{folder.name}-config"), plan, weights=False),
        content,
        dtype,
        None,
        dummy=True,
    )


def _made(folder: Path, plan: LoadPlan, *, weights: bool) -> Path:
    """Write the folder in one step, once. Safe among processes."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _write(folder, plan, weights=weights)
    return folder


def _write(folder: Path, plan: LoadPlan, *, weights: bool) -> None:
    name = plan.model.location
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        dtype = getattr(torch, ARCHITECTURES[name].dtype)
        if weights:
            arch.build(
                name, dtype=dtype, device=torch.device("cpu"), seed=plan.seed, attention=None
            ).save_pretrained(scratch)
        else:
            config = arch.config_of(name)
            config.architectures = [type(arch.on_meta(config, dtype, None)).__name__]
            config.dtype = dtype
            config.save_pretrained(scratch)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
