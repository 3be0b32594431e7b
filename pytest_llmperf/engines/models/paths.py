"""Names of models that are paths: where they are looked up, and which are never a hub id."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_llmperf.errors import UsageError


def existing(name: str, root: Path | None) -> Path:
    """Return the place of a path that exists: below the root, else in the working directory.

    Where neither exists it is the first of them.
    """
    # pathlib's expanduser raises for a user that does not exist.
    expanded = Path(os.path.expanduser(name))  # noqa: PTH111
    places = [expanded] if root is None else [root / expanded, expanded]
    return next(filter(exists, places), places[0])


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; no name is too long to be asked for."""
    return os.path.exists(path)  # noqa: PTH110  pathlib's raises for a long name


def require_no_folder_of(name: str, root: Path) -> None:
    """Raise UsageError for a hub id whose first part is a folder of the project.

    A folder was meant, and the hub may have somebody's repository of that name.
    """
    first, slash, _ = name.partition("/")
    if slash and (root / first).is_dir():
        raise UsageError(
            f"model {name!r}: {root / first} is a folder of the project, and there is no "
            f"{root / name}. The hub is not asked for a name that begins as one of your folders: "
            "check the path, or name the folder of a downloaded snapshot."
        )


def looks_like_path(name: str) -> bool:
    """Whether a name can be nothing but a path."""
    return name.startswith(("/", "./", "../", "~")) or name.endswith(".gguf") or name.count("/") > 1


def kind_of_path(path: Path) -> str:
    """Return what a path is that is no model, for a message."""
    if path.is_dir():
        return "a folder without a config.json"
    return "neither a folder nor a .gguf file"
