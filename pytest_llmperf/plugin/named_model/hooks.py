"""The pytest plugin of `llmperf run`: it collects the test of this package and nothing else."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from pytest_llmperf.names import NAMED_MODEL
from pytest_llmperf.plugin.named_model import taken_over

_FILE = Path(__file__).with_name("measured.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> bool:
    """Collect the one file, whatever the command line and the ini file name."""
    session.perform_collect([str(_FILE)])
    return True


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Name the file by its model: it is none of the project's."""
    collectors = yield
    if file_path != _FILE:
        return collectors
    name = f"{NAMED_MODEL} {taken_over(os.environ).model}"
    return [pytest.Module.from_parent(parent, path=file_path, nodeid=name)]
