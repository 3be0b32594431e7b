"""The scripted server as a load plan.

That is its command, and a model folder whose tokenizer has one token a word.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref

STUB = Path(__file__).with_name("stub_server.py")


def write_model(folder: Path) -> Path:
    """A folder `tiny` with a config and a tokenizer of the words w0 to w499."""
    model = folder / "tiny"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "stub"}')
    words = [f"w{i}" for i in range(500)] + [f"[{lap}.{i}]" for lap in range(20) for i in range(20)]
    # A word.
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(model / "tokenizer.json"))
    return model


def stub_command(*args: str) -> str:
    """The command of a stub, for option `command`."""
    return " ".join([sys.executable, str(STUB), "--port", "{port}", "--model", "tiny", *args])


def stub_plan(
    model: Path, *args: str, engine: str = "server", **options: str | float | bool
) -> LoadPlan:
    """The load plan of a stub."""
    stub_options = {
        "command": stub_command(*args),
        "name": "tiny",
        "stop_timeout": 0.5,
        "start_timeout": 20,
        "probe": False,
        **options,
    }
    return LoadPlan(model=model_ref(str(model)), engine=engine, options=tuple(stub_options.items()))
