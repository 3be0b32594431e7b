"""Options under the names that they had in the version before: they work, with a warning.

Every session with the plugin imports this file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmperf.settings.options import FORMER_OPTIONS, Option
from pytest_llmperf.settings.paths import absolute

if TYPE_CHECKING:
    import pytest


def adopt_former_names(config: pytest.Config) -> None:
    """Take values that were given under a former name for the options that have it now.

    The present name wins where both are given in one place, the command line over the ini file.
    """
    for option, former in FORMER_OPTIONS:
        _adopt_from_command_line(config, option, former)
        _adopt_from_ini_file(config, option, former)


def _adopt_from_command_line(config: pytest.Config, option: Option, former: Option) -> None:
    value = config.getoption(former.dest)
    if value is not None:
        _warn(config, former.flag_name, option.flag_name)
        _default(config, option, value)


def _adopt_from_ini_file(config: pytest.Config, option: Option, former: Option) -> None:
    value = config.getini(former.ini_name)
    if value is None:
        return
    _warn(config, former.ini_name, option.ini_name)
    if config.getini(option.ini_name) is None:
        _default(config, option, absolute(option, value, str(config.rootpath)))


def _default(config: pytest.Config, option: Option, value: Any) -> None:
    if config.getoption(option.dest) is None:
        setattr(config.option, option.dest, value)


def _warn(config: pytest.Config, former: str, present: str) -> None:
    # Workers of pytest-xdist have the same options as their controller, which warns.
    if not hasattr(config, "workerinput"):
        text = f"{former} is called {present} since 0.2; the former name goes with 0.3."
        config.issue_config_time_warning(DeprecationWarning(text), stacklevel=2)
