"""Models that a test holds itself.

Each is compared with its opponent of this session, and put back as it was.
"""

from __future__ import annotations

import pytest

BODY = """
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from pytest_llmperf import PromptSet

def build(seed):
    torch.manual_seed(seed)
    shape = dict(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return LlamaForCausalLM(LlamaConfig(**shape))

def kl(llmperf, seed):
    ours, other = llmperf.wrap(build(0)), llmperf.wrap(build(seed))
    return float(ours.agreement(other, prompts=PromptSet.synthetic(1), new_tokens=2).kl)

def test_another(llmperf):
    assert kl(llmperf, 1) > 0

def test_equal(llmperf):
    assert kl(llmperf, 0) < 1e-12

HELD = build(0).train()
CONFIG = HELD.generation_config

def test_twice(llmperf):
    llmperf.wrap(HELD)
    llmperf.wrap(HELD)
    assert not HELD.training

def test_put_back():
    assert HELD.training
    assert HELD.generation_config is CONFIG
"""


def test_the_fingerprint_sees_a_permutation():
    """Rows that change places keep every sum but the one by places."""
    import torch

    from pytest_llmperf.engines.transformers.wrapped import fingerprint

    layer = torch.nn.Linear(4, 4)
    before = fingerprint(layer)
    assert fingerprint(layer) == before
    with torch.no_grad():
        layer.weight.copy_(layer.weight.flip(0))
    assert fingerprint(layer) != before


OPPONENTS = ("test_another", "test_equal", "test_twice", "test_put_back")

KEEPING = """
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

KEPT = []

def build():
    shape = dict(
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    return LlamaForCausalLM(LlamaConfig(**shape))

@pytest.fixture(scope="module")
def shared():
    return {"model": build()}

@pytest.fixture
def own():
    return build()

BEFORE = build()

def test_lets_go(llmperf, own):
    llmperf.wrap(own)
    llmperf.wrap(BEFORE)

def test_keeps(llmperf):
    KEPT.append(build())
    llmperf.wrap(KEPT[0], name="mine")

def test_shares(llmperf, shared):
    llmperf.wrap(shared["model"])

def test_fails(llmperf):
    model = build()
    llmperf.wrap(model)
    assert model is None
"""


def test_wrapped_models_are_themselves_and_one_that_is_kept_for_ever_is_an_error(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cached reference belongs to its own model's weights; a model wrapped twice is put back.

    One in a module-level list is named, with bytes. Not one that a test lets go of or found there,
    nor a wider fixture's or a traceback's. One session has both files: it imports torch once.
    """
    monkeypatch.setenv("LLMPERF_CACHE", str(pytester.path / "cache"))
    pytester.makepyfile(test_opponents=BODY, test_keeping=KEEPING)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rA")
    result.assert_outcomes(passed=3 + 4, failed=1, errors=1)
    result.stdout.fnmatch_lines([f"PASSED test_opponents.py::{name}" for name in OPPONENTS])
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_keeps*"])
    held = r"mine \(0\.1\d GB \(\d+ bytes\) of weights\)"
    result.stdout.re_match_lines(
        [rf"E .*MemoryNotReturned: {held} is still referred to after the test.*"],
    )
