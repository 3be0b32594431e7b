"""What was asked for on the command line and in the ini file, option by option.

Every pytest session imports this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_llmperf.settings.options import OPTIONS, Option
from pytest_llmperf.settings.paths import absolute

_BY_NAME = {option.name: option for option in OPTIONS}


def check_options(config: pytest.Config) -> None:
    """End a session at its start where an option of ours cannot be used: exit code 4."""
    values = ((option.name, _given(config, option)) for option in OPTIONS)
    given = {name: value for name, value in values if value is not None}
    if not given or hasattr(config, "workerinput"):
        return
    # Where an option was given.
    from pytest_llmperf.errors import UsageError  # noqa: PLC0415
    from pytest_llmperf.settings.given import check_given  # noqa: PLC0415

    try:
        check_given(given, config.rootpath)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error


def option_value(config: pytest.Config, option: Option) -> Any:
    """Return the command line's value, else the ini file's, else the default.

    Paths of the first two are absolute.
    """
    value = _given(config, option)
    if value is not None:
        return value
    if option.many:
        return []
    return False if option.flag else option.default


def value_of(config: pytest.Config) -> Callable[[str], Any]:
    """Return a function from an option's name to its value."""
    return lambda name: option_value(config, _BY_NAME[name])


def _given(config: pytest.Config, option: Option) -> Any:
    """Return the command line's value, else the ini file's, else None."""
    value = config.getoption(option.dest)
    if value is not None:
        return value
    text = _ini(config, option.ini_name)
    return absolute(option, text, str(config.rootpath)) if text else text


def _ini(config: pytest.Config, name: str) -> Any:
    try:
        return config.getini(name)
    # Of a truth value pytest names the value alone.
    except (TypeError, ValueError, pytest.UsageError) as error:
        # Where a value is not the text that most options are.
        from pytest_llmperf.settings.project import native_text  # noqa: PLC0415

        text = native_text(config.inipath, name)
        if text is not None:
            return text
        problem = str(error).removeprefix(f"{config.inipath}: ")
        raise pytest.UsageError(f"{name} in {config.inipath}: {problem}") from error
