"""Relative paths of options: from the working directory on the command line, else the rootdir."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pytest_llmperf.settings.options import OPTIONS, Option

if TYPE_CHECKING:
    import pytest

_SQLITE = ("sqlite:///", "sqlite+pysqlite:///")


def resolve_command_line(config: pytest.Config) -> None:
    """Make the paths of the command line absolute.

    So every process of the session reads the same ones.
    """
    for option in OPTIONS:
        value = getattr(config.option, option.dest)
        if option.path and value:
            setattr(
                config.option,
                option.dest,
                absolute(option, value, str(config.invocation_params.dir)),
            )


def absolute(option: Option, value: Any, folder: str) -> Any:
    """The value of an option with its relative path taken from `folder`.

    Anything else is left as it is.
    """
    if isinstance(value, list):
        return [absolute(option, element, folder) for element in value]
    if option.path == "file":
        return _joined(folder, value)
    if option.path == "engine":
        engine, separator, path = value.partition("=")
        return f"{engine}={_joined(folder, path)}" if separator and path else value
    return _absolute_url(value, folder) if option.path == "store" else value


def _absolute_url(url: str, folder: str) -> str:
    for start in _SQLITE:
        path = url.removeprefix(start)
        if path not in (url, "") and not path.startswith((":memory:", "file:", "?")):
            return start + _joined(folder, path)
    return url


def _joined(folder: str, path: str) -> str:
    # Every session with the plugin imports this file.
    return os.path.join(folder, os.path.expanduser(path))  # noqa: PTH111, PTH118
