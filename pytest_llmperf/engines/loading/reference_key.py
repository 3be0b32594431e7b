"""What decides a model's outputs beside its weights: code, configuration, buffers, tokenizer.

A reference on disk is of exactly these. All hashes are of a model as its source gave it, before any
strategy changed it, so that they are the same for every strategy.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pytest_llmperf.engines.models.content import hash_value

REMOTE_CODE = "transformers_modules"
"""The package that transformers imports the code of checkpoints as."""

_CHOSEN_BY_STRATEGY = frozenset(
    {"_attn_implementation", "_experts_implementation", "dtype", "torch_dtype", "training"}
)
_OURS = "pytest_llmperf"


def reference_key(model: nn.Module, tokenizer: Any | None, held: str = "") -> str:
    """Return one hash of all; `held` is that of a model without files, see `held_hash`."""
    return hash_value(
        {
            "tokenizer": tokenizer_hash(tokenizer),
            "remote code": _remote_code_hash(model),
            "held": held,
        }
    )


def tokenizer_hash(tokenizer: Any | None) -> str:
    """Return a hash of the vocabulary, the rules, the special tokens and the chat template."""
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = json.dumps(sorted(tokenizer.get_vocab().items()))
    else:
        rules = str(backend.to_str())
    return hash_value(
        {
            "class": type(tokenizer).__name__,
            "rules": hashlib.sha256(rules.encode()).hexdigest(),
            "special": json.dumps(tokenizer.special_tokens_map, default=str, sort_keys=True),
            "template": json.dumps(getattr(tokenizer, "chat_template", None), sort_keys=True),
        }
    )


def held_hash(model: Any, made_by: str = "") -> str:
    """Return a hash of what a model without files computes with, beside its parameters.

    That is its configuration, its buffers, the numbers and words that its modules hold, and the
    code of the project that is loaded: that of `made_by`, a module's name, and of its classes.
    """
    return hash_value(
        {
            "config": _config_text(model),
            "buffers": _buffers_hash(model),
            "attributes": _attributes_hash(model),
            "code": _project_code_hash(model, made_by),
        }
    )


def _config_text(model: Any) -> str:
    config: Any = getattr(model, "config", None)
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    return json.dumps(_without_choices(values), default=str, sort_keys=True)


def _without_choices(value: Any) -> Any:
    """Return a config's values without those that a strategy chooses, at any depth."""
    if not isinstance(value, dict):
        return value
    return {
        str(name): _without_choices(inner)
        for name, inner in value.items()
        if name not in _CHOSEN_BY_STRATEGY
    }


def _buffers_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, buffer in sorted(model.named_buffers()):
        digest.update(f"{name} {buffer.dtype} {tuple(buffer.shape)}".encode())
        values = buffer.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return digest.hexdigest()


def _attributes_hash(model: nn.Module) -> str:
    """Return a hash of the plain values of all modules: scales, widths, switches."""
    lines = [
        f"{path}.{name}={value!r}"
        for path, module in model.named_modules()
        for name, value in sorted(vars(module).items())
        if name not in _CHOSEN_BY_STRATEGY and isinstance(value, bool | int | float | str)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _project_code_hash(model: nn.Module, made_by: str) -> str:
    """Return a hash of the files of all modules that are of the project, and are loaded."""
    names = {type(module).__module__ for module in model.modules()}
    starts = [sys.modules[name] for name in (*sorted(names), made_by) if name in sys.modules]
    roots = {root for root in map(_root, starts) if root is not None}
    packages = {made_by.partition(".")[0]} - {""}
    files = {
        name: file
        for name, file in _loaded_files()
        if _is_below(file, roots) or name.partition(".")[0] in packages
    }
    return _files_hash(files.items())


def _loaded_files() -> Iterator[tuple[str, Path]]:
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name.partition(".")[0] != _OURS and name != "__main__":
            yield name, Path(file)


def _root(module: ModuleType) -> Path | None:
    """Return the folder that a module of the project is imported from; None for installed ones."""
    file = getattr(module, "__file__", None)
    if not file or module.__name__.partition(".")[0] == _OURS or not _is_of_project(Path(file)):
        return None
    depth = module.__name__.count(".") + (Path(file).name == "__init__.py")
    return Path(file).resolve().parents[depth]


def _is_of_project(file: Path) -> bool:
    is_installed = not {"site-packages", "dist-packages"}.isdisjoint(file.parts)
    return not is_installed and not file.is_relative_to(Path(json.__file__).parents[1])


def _is_below(file: Path, roots: Iterable[Path]) -> bool:
    return _is_of_project(file) and any(file.resolve().is_relative_to(root) for root in roots)


def _remote_code_hash(model: nn.Module) -> str:
    """Return a hash of the code that came with a checkpoint; empty without such."""
    name = type(model).__module__
    file = getattr(sys.modules.get(name), "__file__", None)
    if not name.startswith(REMOTE_CODE) or file is None:
        return ""
    folder = Path(file).parent
    return _files_hash((file.name, file) for file in sorted(folder.glob("*.py")))


def _files_hash(files: Iterable[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, file in sorted(files):
        digest.update(f"{name}\n".encode())
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()
