"""The tested project as the command line finds it: its root and settings, by pytest's own rules."""

from __future__ import annotations

import configparser
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from pytest_llmperf.errors import UsageError

_FILES = (
    "pytest.toml",
    ".pytest.toml",
    "pytest.ini",
    ".pytest.ini",
    "pyproject.toml",
    "tox.ini",
    "setup.cfg",
)
_ALWAYS = frozenset(_FILES[:4])  # these decide the root even when they are empty
_SECTIONS = {"tox.ini": "pytest", "setup.cfg": "tool:pytest"}


class Project(Struct, frozen=True, kw_only=True):
    """The root that pytest would take, and the options of its ini file."""

    root: Path
    ini: dict[str, Any] = {}

    @property
    def store(self) -> str | None:
        """`llmperf_store` of the ini file, if set."""
        value = self.ini.get("llmperf_store")
        return str(value) if value else None


def find_project(start: Path) -> Project:
    """The project of a folder: the nearest ancestor that has a pytest configuration.

    Without one it is the nearest with a setup.py or a pyproject.toml, else `start`.

    Raises:
        UsageError: the file that decides cannot be parsed.

    """
    folders = (start, *start.parents)
    for folder in folders:
        for name in _FILES:
            ini = _options(folder / name)
            if ini is not None:
                return Project(root=folder, ini=dict(ini))
    fallback = (
        folder
        for name in ("setup.py", "pyproject.toml")
        for folder in folders
        if (folder / name).is_file()
    )
    return Project(root=next(fallback, start))


_UNREADABLE = (ValueError, configparser.Error, OSError, RecursionError)


def native_text(file: Path | None, name: str) -> str | None:
    """The text of an option that stands as a number or a truth value in a TOML file, else None.

    pytest 9 reads such files with their types, and most options are texts.
    """
    if file is None or file.suffix != ".toml":
        return None
    value = (_options(file) or {}).get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "on" if value is True else None
    return str(value)


def _options(file: Path) -> Mapping[str, Any] | None:
    """The options of pytest in a file; None if it is not there or does not mention pytest."""
    if not file.is_file():
        return None
    try:
        options = _toml(file) if file.suffix == ".toml" else _ini(file)
    except _UNREADABLE as error:
        raise UsageError(
            f"{file} cannot be read: {error}. Mend it, or say which history with --store URL."
        ) from error
    return {} if options is None and file.name in _ALWAYS else options


def _toml(file: Path) -> Mapping[str, Any] | None:
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    if file.name != "pyproject.toml":
        return _table(content, "pytest")
    table = _table(_table(content, "tool") or {}, "pytest")
    return _table(table, "ini_options") or table if table else None


def _table(content: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    table = content.get(name)
    return table if isinstance(table, dict) else None


def _ini(file: Path) -> Mapping[str, Any] | None:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read_string(file.read_text(encoding="utf-8"), source=str(file))
    section = _SECTIONS.get(file.name, "pytest")
    return dict(parser[section]) if parser.has_section(section) else None
