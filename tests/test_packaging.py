"""What is built and installed: light without an engine, whole, and said truly in pyproject.toml."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

import install_size

FOUND = {
    "python": "3.11",
    "bytes": 60e6,
    "distributions": ["msgspec", "pytest"],
    "works": {"collect": 0, "plan": 0},
}


def names(requirements):
    return {re.split(r"[\[<>=! ;]", each, maxsplit=1)[0].lower() for each in requirements}


def test_the_base_needs_no_engine():
    """What `pip install pytest-llmperf` asks for; the engines are extras."""
    assert (
        names(PROJECT["dependencies"])
        & {"torch", "transformers", "vllm", "numpy", "scipy", "httpx"}
        == set()
    )
    assert {"torch", "transformers"} <= names(PROJECT["optional-dependencies"]["transformers"])


def test_every_dependency_has_a_least_version():
    """One that was tried: nox's session `lowest` installs just those."""
    assert [each for each in PROJECT["dependencies"] if not re.search(r">=\d", each)] == []


def test_the_pythons_that_are_promised_are_those_that_nox_runs():
    """Classifiers, requires-python and the sessions."""
    promised = [
        each.rpartition(" ")[2]
        for each in PROJECT["classifiers"]
        if re.search(r"Python :: 3\.\d", each)
    ]
    assert f"PYTHONS = ({', '.join(map(repr, promised))})".replace("'", '"') in (
        ROOT / "noxfile.py"
    ).read_text(encoding="utf-8")
    assert PROJECT["requires-python"] == f">={promised[0]}"


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"bytes": 80.1e6}, False),
        ({"distributions": [f"d{i}" for i in range(26)]}, False),
        ({"distributions": ["pytest", "torch"]}, False),
        ({"works": {"collect": 0, "plan": 2}}, False),
    ],
)
def test_each_bar_of_the_base_install_can_be_missed(change, good):
    """Size, number of distributions, an engine among them, something that does not work."""
    assert install_size.holds({**FOUND, **change}) == good


@pytest.mark.skipif(
    "LLMPERF_NIGHTLY" not in os.environ,
    reason="builds and installs for a minute: make nightly runs it",
)
def test_the_wheel_and_the_sdist_hold_the_bars_in_an_empty_environment(tmp_path, monkeypatch):
    """It is built, installed and used as by a newcomer; the archive has what the tests need too."""
    monkeypatch.setattr(sys, "argv", ["install_size.py", "--sdist"])
    assert install_size.main() == 0
