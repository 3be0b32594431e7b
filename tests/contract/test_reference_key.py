"""A reference on disk is of one model: whatever decides its outputs is in its key."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from msgspec import structs
from support.quantizing import plan_of

from pytest_llmperf.engines.loading.reference_key import reference_key, tokenizer_hash
from pytest_llmperf.engines.models.content import file_sha256
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.session import agreement
from pytest_llmperf.session.agreement import Question
from pytest_llmperf.workloads import PromptSet

FACTORY = """
import os
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from stale_helper import scale

def build():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=512, rms_norm_eps=float(os.environ.get("EPS", "1e-6")),
    )
    model = LlamaForCausalLM(config).eval()
    model.model.rotary_emb.inv_freq.mul_(float(os.environ.get("ROPE", "1")))
    model.model.layers[0].self_attn.scaling *= float(os.environ.get("SCALE", "1"))
    return scale(model)
"""
HELPER = "def scale(model):\n    return model\n"
NAMES = ("stale_factory", "stale_helper")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a factory: writes its two files, and loads what the factory makes."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def loaded(strategy="fp32", factory=FACTORY, helper=HELPER):
        for name, text in zip(NAMES, (factory, helper), strict=True):
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return load(plan_of(strategy, "stale_factory:build"))

    yield loaded
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("strategy", ["fp32", "bf16", "fp32+int8wo", "fp32+magnitude:0.5"])
def test_a_key_is_that_of_the_model_under_every_strategy(project, strategy):
    """Else each strategy would have the reference made again."""
    pytest.importorskip("torchao")
    assert project(strategy).reference_key == project().reference_key != ""


@pytest.mark.parametrize("name", ["ROPE", "SCALE", "EPS"])
def test_a_buffer_a_number_or_a_config_that_changed_is_another_key(project, monkeypatch, name):
    """The parameters and the code are the same: the hash of the weights says nothing of it."""
    first = project()
    monkeypatch.setenv(name, "0.25")
    second = project()
    assert first.content_hash == second.content_hash
    assert first.reference_key != second.reference_key


@pytest.mark.parametrize(
    "edited",
    [
        {"factory": FACTORY.replace("return scale(model)", "return scale(scale(model))")},
        {"helper": HELPER + "\nSECOND = 2\n"},
    ],
)
def test_code_of_the_project_that_changed_is_another_key(project, edited):
    """That of the factory, and of what it imports from the project."""
    assert project().reference_key != project(**edited).reference_key


def test_the_code_that_comes_with_a_checkpoint_is_in_the_key(tmp_path, monkeypatch):
    """transformers imports it as a package of its own, from a folder of its own."""
    keys = []
    for text in ("FACTOR = 1\n", "FACTOR = 2\n"):
        (tmp_path / "modeling_own.py").write_text(text)
        name = "transformers_modules.own.modeling_own"
        module = SimpleNamespace(__file__=str(tmp_path / "modeling_own.py"))
        monkeypatch.setitem(sys.modules, name, module)
        own = type("Own", (torch.nn.Module,), {"__module__": name})
        keys.append(reference_key(own(), None))
    assert keys[0] != keys[1]
    assert reference_key(torch.nn.Linear(1, 1), None) not in keys


def fast_tokenizer():
    from tokenizers import Tokenizer, models

    words = models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))


def test_a_chat_template_or_a_rule_of_the_tokenizer_is_in_the_key():
    """Token ids go into the reference, and these decide them."""
    plain, templated, lowered, marked = (fast_tokenizer() for _ in range(4))
    templated.chat_template = "{{ messages }}"
    from tokenizers import normalizers

    lowered.backend_tokenizer.normalizer = normalizers.Lowercase()
    marked.eos_token = "b"  # noqa: S105
    hashes = [tokenizer_hash(one) for one in (plain, templated, lowered, marked)]
    assert len(set(hashes)) == 4
    assert tokenizer_hash(fast_tokenizer()) == hashes[0]
    plain.padding_side = "left"
    assert tokenizer_hash(plain) == hashes[0]


def test_the_file_of_a_reference_is_that_of_its_key():
    """Without the key in its name, the second session would read the first one's outputs."""
    plan = plan_of("fp32")
    opened = SimpleNamespace(
        content_hash="c", base_hash="", reference_key="one", device_name="d", versions={}
    )
    question = Question(prompts=PromptSet.synthetic(0))
    paths = [
        agreement._path(SimpleNamespace(plan=plan, opened=each), plan, question)
        for each in (opened, opened, SimpleNamespace(**{**vars(opened), "reference_key": "two"}))
    ]
    assert paths[0] == paths[1] != paths[2]
    other_arguments = structs.replace(plan, options=(("prefill", "eager"),))
    assert (
        agreement._path(SimpleNamespace(plan=plan, opened=opened), other_arguments, question)
        != (paths[0])
    )


def test_a_file_of_the_same_size_and_time_is_read_anew(tmp_path, monkeypatch):
    """A copy that keeps times (rsync -t, cp -p) leaves size and time of change as they were."""
    import os

    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first, stat = file_sha256(file), file.stat()
    other = tmp_path / "other"
    other.write_bytes(b"two")
    other.replace(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_sha256(file) != first
