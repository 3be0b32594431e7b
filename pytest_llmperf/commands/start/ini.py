"""Adds options to the file that a project keeps pytest's options in, and changes nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_HEADS = {
    "pytest.toml": ("[pytest]",),
    ".pytest.toml": ("[pytest]",),
    "pytest.ini": ("[pytest]",),
    ".pytest.ini": ("[pytest]",),
    "pyproject.toml": ("[tool.pytest.ini_options]", "[tool.pytest]"),
    "tox.ini": ("[pytest]",),
    "setup.cfg": ("[tool:pytest]",),
}
"""File -> the tables that pytest reads in it."""


def add_options(root: Path, options: Mapping[str, str]) -> Path | None:
    """Write the options that the project has not set, and return the file; None if it has all.

    The file is the one that pytest reads, a table of pyproject.toml, or a new pytest.ini.
    """
    path, head = _place(root)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    missing = {name: value for name, value in options.items() if not _is_set(text, name)}
    if not missing:
        return None
    path.write_text(_with_lines(text, head, missing, path.suffix), encoding="utf-8")
    return path


def _place(root: Path) -> tuple[Path, str]:
    for name, heads in _HEADS.items():
        path = root / name
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for head in heads:
            if _line_of(text, head) is not None:
                return path, head
    if (root / "pyproject.toml").is_file():
        return root / "pyproject.toml", "[tool.pytest.ini_options]"
    return root / "pytest.ini", "[pytest]"


def _with_lines(text: str, head: str, options: Mapping[str, str], suffix: str) -> str:
    """Return the text with the options below the head, which is added where it is not there."""
    quote = '"' if suffix == ".toml" else ""
    lines = [f"{name} = {quote}{value}{quote}" for name, value in options.items()]
    existing = text.splitlines()
    at = _line_of(text, head)
    if at is None:
        gap = [""] if existing else []
        return "\n".join([*existing, *gap, head, *lines, ""])
    return "\n".join([*existing[: at + 1], *lines, *existing[at + 1 :], ""])


def _line_of(text: str, head: str) -> int | None:
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return lines.index(head) if head in lines else None


def _is_set(text: str, name: str) -> bool:
    return re.search(rf"^\s*{re.escape(name)}\s*=", text, re.MULTILINE) is not None
