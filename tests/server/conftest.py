"""A model folder whose tokenizer has one token a word, and stub servers to serve it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models import model_ref
from pytest_llmperf.engines.server.engine import ServerEngine
from pytest_llmperf.engines.server.session import ServerSession

STUB = Path(__file__).with_name("stub_server.py")

Start = Callable[..., ServerSession]


def write_model(folder: Path) -> Path:
    """A folder `tiny` with a config and a tokenizer of the words w0 to w499."""
    model = folder / "tiny"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "stub"}')
    words = [f"w{i}" for i in range(500)] + [f"[{lap}.{i}]" for lap in range(20) for i in range(20)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))  # noqa: S106 - a word
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(model / "tokenizer.json"))
    return model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder."""
    return write_model(tmp_path)


def stub_command(*args: str) -> str:
    """The command of a stub, for option `command`."""
    return " ".join([sys.executable, str(STUB), "--port", "{port}", "--model", "tiny", *args])


def stub_plan(model: Path, *args: str, engine: str = "server", **options: str | float | bool) -> LoadPlan:
    """The load plan of a stub."""
    given = {"command": stub_command(*args), "name": "tiny", "stop_timeout": 0.5, "start_timeout": 20, **options}
    return LoadPlan(model=model_ref(str(model)), engine=engine, options=tuple(given.items()))


@pytest.fixture
def start(model: Path) -> Iterator[Start]:
    """`start(*stub arguments, **options)` gives the session of a stub; it is closed after the test."""
    opened: list[ServerSession] = []

    def call(*args: str, **options: str | float | bool) -> ServerSession:
        opened.append(ServerEngine().open(stub_plan(model, *args, **options)))
        return opened[-1]

    yield call
    for session in opened:
        session.close()


@pytest.fixture
def pids(tmp_path: Path) -> Callable[[], list[int]]:
    """Process ids that a stub wrote to pids.json."""
    return lambda: json.loads((tmp_path / "pids.json").read_text())
