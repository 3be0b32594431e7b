"""Loading what a project builds itself: a factory by its name."""

from __future__ import annotations

import sys
import textwrap

import pytest

from pytest_llmperf.errors import LoadError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from support.loading import dtypes, plan_for

from pytest_llmperf.engines.transformers.factory import from_factory
from pytest_llmperf.engines.transformers.load import load


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write a module `own_models` that a factory can be found in."""

    def write(code):
        (tmp_path / "own_models.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "own_models", raising=False)

    yield write
    sys.modules.pop("own_models", None)


FACTORIES = """
    from transformers import LlamaConfig, LlamaForCausalLM
    SHAPE = dict(
        vocab_size=64, hidden_size=16, intermediate_size=32,
        num_hidden_layers=1, num_attention_heads=2,
    )
    seen = []
    class Words:
        pad_token_id, eos_token, pad_token, padding_side = None, "<end>", None, "right"
    def build():
        import torch
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**SHAPE))
    def build_with_plan(plan):
        seen.append(plan)
        return build(), Words()
    def wrong():
        return {"not": "a model"}
    def raising():
        raise ZeroDivisionError("no such number")
    number = 3
"""


def test_a_factory_builds_the_model(project):
    """Its parameters are converted, its rotary tables are not."""
    project(FACTORIES)
    loaded = load(plan_for("own_models:build", weights_dtype="bfloat16"))
    assert dtypes(loaded.model) == {"bfloat16"}
    assert {str(b.dtype) for b in loaded.model.buffers()} == {"torch.float32"}
    assert loaded.checkpoint_dtype == "float32"
    assert loaded.content_hash == load(plan_for("own_models:build")).content_hash


def test_a_factory_that_takes_an_argument_gets_the_plan(project):
    """And its tokenizer pads on the left, with the end token."""
    project(FACTORIES)
    plan = plan_for("own_models:build_with_plan")
    tokenizer = load(plan).tokenizer
    assert sys.modules["own_models"].seen == [plan]
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "<end>")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("own_models:nothing", "has no such name"),
        ("own_models:number", "holds a int there; a function"),
        ("own_models:wrong", "returned a dict; a transformers model"),
        ("own_models:raising", "the factory raised ZeroDivisionError: no such number"),
        ("no_such_module:build", "'no_such_module' cannot be imported.*PYTHONPATH"),
    ],
)
def test_a_factory_that_cannot_be_used_says_why(project, name, reason):
    """Each with the name of the model."""
    project(FACTORIES)
    with pytest.raises(LoadError, match=f"model '{name}': .*{reason}"):
        load(plan_for(name))


def test_running_out_of_memory_stays_running_out_of_memory(project):
    """It is not reported as a broken factory."""
    project("def build():\n    raise MemoryError")
    with pytest.raises(MemoryError):
        from_factory(plan_for("own_models:build"), torch.device("cpu"))
