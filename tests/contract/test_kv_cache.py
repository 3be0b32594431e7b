"""8-bit KV caches: smaller, described by their own tensors, and near the full cache.

Teacher-forced passes read them too.
"""

from __future__ import annotations

import pytest
import torch
from support.generating import ROWS, batch, loaded, plan, tiny_llama
from transformers import MistralConfig, MistralForCausalLM, cache_utils

from pytest_llmperf.engines.transformers import TransformersModel, kv_cache
from pytest_llmperf.engines.transformers.generate import GenerateLoop
from pytest_llmperf.errors import NotInEffect, UsageError
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.workloads import Decode, PromptSet

KINDS = {"int8": "Cache of int8", "fp8": "QuantizedCache of float8_e4m3fn"}


@pytest.fixture(params=["int8", "fp8"])
def cache(request):
    if request.param == "fp8" and not hasattr(cache_utils, "Fp8QuantizedLayer"):
        pytest.skip("transformers before 5.21 has no fp8 cache")
    return request.param


def decode(kind, rows=ROWS, n=12):
    return GenerateLoop(tiny_llama(), plan(cache=kind), 0).decode(batch(rows), n)


def test_it_is_seen_by_its_own_tensors_and_a_third_of_the_size(cache):
    """A float32 cache of 8-wide heads: 4 bytes a value against 1, int8 with 2 more for 8 values."""
    found, full = decode(cache).cache, decode("dynamic").cache
    assert found.kind == KINDS[cache]
    assert found.layers == full.layers
    per_value = {"int8": 1 + 2 / 8, "fp8": 1}[cache]
    assert found.bytes_per_position == pytest.approx(
        full.bytes_per_position * per_value / 4, rel=0.05
    )
    assert found.bytes == pytest.approx(full.bytes * per_value / 4, rel=0.05)


def test_the_promise_holds_after_a_run_and_not_of_another_cache(cache):
    asked = plan(cache=cache)
    promises = [p for p in parse(f"kv-{cache}").promises(asked) if p.part != "auto"]
    session = TransformersModel(loaded(tiny_llama(), cache=cache))
    session.run(Decode(batch=2, prompt_tokens=6, new_tokens=4), 0)
    require_in_effect(session.describe().effective, promises, "warm")
    other = TransformersModel(loaded(tiny_llama()))
    other.run(Decode(batch=2, prompt_tokens=6, new_tokens=4), 0)
    with pytest.raises(NotInEffect, match="used DynamicCache, asked for one of"):
        require_in_effect(other.describe().effective, promises, "warm")


def compared(candidate, tmp_path):
    TransformersModel(loaded(tiny_llama())).make_reference(
        PromptSet.synthetic(1), 8, 4, str(tmp_path / "ref")
    )
    rows = candidate.compare_reference(str(tmp_path / "ref"), 4)
    return (
        max(max(row.kl) for row in rows),
        [max(row.kl[1:]) for row in rows],
        [row.kl[0] for row in rows],
    )


def test_teacher_forced_passes_read_the_prompt_from_the_cache(cache, tmp_path):
    """The first token comes from the prompt as it was, and is equal.

    Those after it come from the rounded cache: near, and not equal.
    """
    worst, later, first = compared(TransformersModel(loaded(tiny_llama(), cache=cache)), tmp_path)
    assert max(first) < 1e-9
    assert min(later) > 0
    assert worst < {"int8": 0.05, "fp8": 0.5}[cache]


def test_a_cache_with_a_wrong_scale_is_far_from_the_full_one(tmp_path, monkeypatch):
    """Negative control: scales doubled on the way out."""
    dequantized = kv_cache._dequantized
    monkeypatch.setattr(kv_cache, "_dequantized", lambda pair, like: 2 * dequantized(pair, like))
    worst, _, _ = compared(TransformersModel(loaded(tiny_llama(), cache="int8")), tmp_path)
    assert worst > 0.5


def test_what_was_kept_stays_as_it_was_kept():
    """Appending changes no value and no scale of what is there."""
    layer = kv_cache.Int8Layer()
    states = torch.randn(2, 3, 10, 8, generator=torch.Generator().manual_seed(0))
    first, _ = layer.update(states[:, :, :6], states[:, :, :6])
    assert torch.equal(first, states[:, :, :6])
    again, _ = layer.update(states[:, :, 6:], states[:, :, 6:])
    kept, scale = layer._quantized_keys
    layer.update(states[:, :, :1], states[:, :, :1])
    assert torch.equal(layer._quantized_keys[0][:, :, :10], kept)
    assert torch.equal(layer._quantized_keys[1][:, :, :10], scale)
    assert layer.get_seq_length() == 11
    assert (
        (again[:, :, :6] - states[:, :, :6]).abs() <= scale[:, :, :6].float() * 0.51 + 1e-3
    ).all()


def test_zeros_are_kept_as_zeros():
    layer = kv_cache.Int8Layer()
    layer.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    keys, _ = layer.update(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4))
    assert torch.equal(keys[:, :, :2], torch.zeros(1, 1, 2, 4))


def test_layers_that_are_no_full_attention_are_refused():
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        sliding_window=8,
    )
    with pytest.raises(
        UsageError, match=r"'kv-int8': MistralForCausalLM needs cache layers .*Sliding"
    ):
        GenerateLoop(MistralForCausalLM(config), plan(cache="int8"), 0)


def test_an_old_transformers_is_named_before_anything_loads(monkeypatch):
    monkeypatch.delattr(cache_utils, "Fp8QuantizedLayer", raising=False)
    with pytest.raises(
        UsageError, match=r"'kv-fp8' needs transformers 5\.21 or newer, .* is installed"
    ):
        kv_cache.require_cache(plan(cache="fp8"))
    kv_cache.require_cache(plan(cache="int8"))
