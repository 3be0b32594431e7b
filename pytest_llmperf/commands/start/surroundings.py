"""What `llmperf init` finds: a GPU, a model, a running server, and where the project is hosted."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

from msgspec import Struct

from pytest_llmperf.engines import engine
from pytest_llmperf.engines.models.architectures import BUILTIN
from pytest_llmperf.engines.models.available import missing_package
from pytest_llmperf.errors import UsageError
from pytest_llmperf.instruments.nvml import Nvml, Unreadable
from pytest_llmperf.settings.git import run_git

SERVERS = (
    "http://127.0.0.1:8000/v1",  # vLLM, SGLang's and others' default behind a proxy
    "http://127.0.0.1:8080/v1",  # llama-server
    "http://127.0.0.1:30000/v1",  # SGLang
    "http://127.0.0.1:11434/v1",  # Ollama
)
"""Where servers listen that speak OpenAI's protocol, by their defaults."""

_PROBE_S = 0.5
_DEPTH = 3
_SKIPPED = frozenset({"node_modules", "site-packages", "venv", "build", "dist"})
RANDOM = "arch:small-llama"
"""A model of random weights: there is always one to measure."""


class Model(Struct, frozen=True, kw_only=True):
    """A model to measure, and how it was found."""

    name: str
    engine: str = "transformers"
    url: str = ""
    why: str = ""


class Surroundings(Struct, frozen=True, kw_only=True):
    """What was found. `gpus` are names, `lacking` is the line that installs the engine, or ""."""

    model: Model
    gpus: tuple[str, ...]
    forge: str
    lacking: str
    is_package: bool


def look_around(root: Path, model: Model | None, forge: str | None) -> Surroundings:
    """Look at the project and this machine; `model` and `forge` are those that were asked for."""
    chosen = model or first_model(root)
    return Surroundings(
        model=chosen,
        gpus=_gpus(),
        forge=forge or forge_of(root),
        lacking=missing_package(engine(chosen.engine)) or "",
        is_package=(root / "pyproject.toml").is_file() or (root / "setup.py").is_file(),
    )


def first_model(root: Path, servers: tuple[str, ...] = SERVERS) -> Model:
    """Return the first of: a running server, a model in the project, the built-in one, random."""
    return (
        next(filter(None, map(served_model, servers)), None)
        or _model_in(root)
        or _shipped()
        or Model(name=RANDOM, why="no model was found: random weights have true speed and memory")
    )


def served_model(url: str) -> Model | None:
    """Return the first model that a server at this address offers; None if nobody answers."""
    try:
        with urllib.request.urlopen(  # noqa: S310 - an address of the table, or the user's
            f"{url}/models", timeout=_PROBE_S
        ) as answer:
            offered = json.load(answer)["data"]
            return Model(
                name=str(offered[0]["id"]),
                engine="server",
                url=url,
                why=f"the server at {url} runs it",
            )
    except (OSError, HTTPException, ValueError, LookupError, TypeError):
        return None


def forge_of(root: Path) -> str:
    """Return "github", "gitlab", or "" where neither hosts the project, as far as it shows."""
    if (root / ".gitlab-ci.yml").is_file():
        return "gitlab"
    if (root / ".github").is_dir():
        return "github"
    try:
        remotes = run_git(root, "remote", "-v").stdout
    except UsageError:  # there is no git
        return ""
    return next((name for name in ("github", "gitlab") if name in remotes), "")


def _model_in(root: Path) -> Model | None:
    for folder in _folders(root, _DEPTH):
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return _found(folder, root)
        gguf = next(iter(sorted(folder.glob("*.gguf"))), None)
        if gguf is not None:
            return _found(gguf, root)
    return None


def _found(path: Path, root: Path) -> Model:
    name = f"./{path.relative_to(root)}"
    return Model(name=name, why=f"{name} is in this project")


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    """Give a folder and those below it, without hidden ones and environments."""
    yield folder
    if depth == 0:
        return
    for path in sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()):
        if not path.name.startswith(".") and path.name not in _SKIPPED:
            yield from _folders(path, depth - 1)


def _shipped() -> Model | None:
    for name, row in BUILTIN.items():
        if find_spec(row.module) is not None:
            return Model(name=name, why=f"the package {row.package} is installed")
    return None


def _gpus() -> tuple[str, ...]:
    gpus = Nvml.listed()
    if isinstance(gpus, Unreadable):
        return ()
    return tuple(str(gpu.facts().get("name", "GPU")) for gpu in gpus)
