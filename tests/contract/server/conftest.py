"""A model folder, and stub servers to serve it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.stubs import stub_plan, write_model

from pytest_llmperf.engines.server.engine import ServerEngine
from pytest_llmperf.engines.server.loaded import ServedModel

Start = Callable[..., ServedModel]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder."""
    return write_model(tmp_path)


@pytest.fixture
def start(model: Path) -> Iterator[Start]:
    """`start(*stub arguments, **options)` gives a stub as a loaded model, closed after the test."""
    opened: list[ServedModel] = []

    def call(*args: str, **options: str | float | bool) -> ServedModel:
        opened.append(ServerEngine().open(stub_plan(model, *args, **options)))
        return opened[-1]

    yield call
    for session in opened:
        session.close()


@pytest.fixture
def pids(tmp_path: Path) -> Callable[[], list[int]]:
    """Process ids that a stub wrote to pids.json."""
    return lambda: json.loads((tmp_path / "pids.json").read_text())
