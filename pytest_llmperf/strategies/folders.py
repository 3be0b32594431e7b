"""Folders that strategy parts name: where they are, and what a text on every machine calls them."""

from __future__ import annotations

from collections.abc import Callable
from os.path import expanduser
from pathlib import Path


def candidates(path: str, root: Path) -> list[Path]:
    """Return the places where a relative path is looked up: the project's root, the current folder.

    An absolute path has one place.
    """
    # The method of pathlib raises for a user that does not exist.
    expanded = Path(expanduser(path))  # noqa: PTH111
    return list(dict.fromkeys(((root / expanded).resolve(), expanded.resolve())))


def first(folders: list[Path], is_fit: Callable[[Path], bool]) -> Path | None:
    """Return the first of the folders that fits, or None."""
    return next(filter(is_fit, folders), None)


def portable_name(folder: Path, root: Path) -> str:
    """Return a folder below the root by its relative path, and another one by its name alone."""
    root = root.resolve()
    if folder.is_relative_to(root) and "+" not in str(folder):
        return folder.relative_to(root).as_posix()
    return folder.name


def or_listed(folders: list[Path]) -> str:
    """Return 'a or b', for a message."""
    return " or ".join(map(str, folders))
