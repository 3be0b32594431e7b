"""Relative paths of options: from the working directory on the command line, else the rootdir."""

from __future__ import annotations

import pytest

from pytest_llmperf.plugin.options import option_value
from pytest_llmperf.settings.options import OPTIONS
from pytest_llmperf.settings.paths import absolute

PATHS = [option for option in OPTIONS if option.path]
VALUES = {"file": "sub/it", "engine": "transformers=sub/it", "store": "sqlite:///sub/it"}
SEEN = {"file": "{}/sub/it", "engine": "transformers={}/sub/it", "store": "sqlite:///{}/sub/it"}


def named(name):
    return next(option for option in OPTIONS if option.name == name)


def test_every_option_that_takes_a_path_says_so():
    """By its placeholder: a file, an interpreter, the URL of a store."""
    by_placeholder = {o.name for o in OPTIONS if o.metavar in ("FILE", "URL", "ENGINE=PATH")}
    assert by_placeholder == {option.name for option in PATHS}


@pytest.mark.parametrize("option", PATHS, ids=lambda option: option.name)
@pytest.mark.parametrize("where", ["command line", "ini file"])
def test_a_relative_path_is_meant_from_where_it_was_written(pytester, monkeypatch, option, where):
    """pytest is called in a folder below the root: the two differ."""
    here = pytester.mkdir("below")
    ini = "" if where == "command line" else f"{option.ini_name} = {VALUES[option.path]}\n"
    (pytester.path / "pytest.ini").write_text(f"[pytest]\n{ini}")
    monkeypatch.chdir(here)
    arguments = [f"{option.flag_name}={VALUES[option.path]}"] if where == "command line" else []
    (here if where == "command line" else pytester.path).joinpath("sub").mkdir()
    (here if where == "command line" else pytester.path).joinpath("sub/it").touch()
    config = pytester.parseconfigure(
        "-c", str(pytester.path / "pytest.ini"), f"--rootdir={pytester.path}", *arguments
    )
    expected = SEEN[option.path].format(here if where == "command line" else pytester.path)
    assert option_value(config, option) == ([expected] if option.many else expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("store", "none"),
        ("store", "sqlite:////abs/history.db"),
        ("store", "sqlite://"),
        ("store", "sqlite:///:memory:"),
        ("store", "postgresql+psycopg://user@host/database"),
        ("json", "/abs/out.jsonl"),
        ("python", "transformers"),
        ("python", "transformers=/usr/bin/python3"),
        ("strategy", "gptq:sub/it"),
    ],
)
def test_what_is_no_relative_path_is_left_as_it_is(name, value):
    """Other URLs, absolute paths, and what will be refused with its own message."""
    assert absolute(named(name), value, "/here") == value


def test_the_defaults_are_meant_from_the_root(pytester):
    """They are joined with it where they are used."""
    config = pytester.parseconfigure()
    assert option_value(config, named("waivers")) == "llmperf-waivers.toml"
    assert option_value(config, named("store")) == "sqlite:///.llmperf/history.db"
