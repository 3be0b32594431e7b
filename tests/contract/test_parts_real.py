"""Caches, adapters, batching and offloading on the real model.

They are in effect, and give the answers that they should.
"""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers", exc_type=ModuleNotFoundError)
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from support.adapting import adapter
from support.real import CHAT, MODEL, NIGHTLY, agreement, make_reference, opened, plan_of, say, warm

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.agreement.rules import default_rule
from pytest_llmperf.engines.transformers import kv_cache
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.workloads import Batch, Decode

pytestmark = NIGHTLY

WORK = Decode(batch=2, prompt_tokens=32, new_tokens=8, prompts=CHAT)
CACHE_SHARES = {"kv-int8": 66 / 256, "kv-fp8": 64 / 256}
"""Shares of a float32 cache with heads of 64: a byte a value.

In int8 each head and position has a float16 scale, too.
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return make_reference(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two random adapters of the real model, of rank 4 and 8: it still writes text with them."""
    root, plain = tmp_path_factory.mktemp("adapters"), plan_of("fp32")
    makers = (("a", 1, 4), ("b", 2, 8))
    return [
        adapter(root / name, load(plain).model, seed=seed, rank=rank, base=MODEL, size=0.03)
        for name, seed, rank in makers
    ]


def cache_bytes(strategy):
    session = opened(strategy)
    session.run(WORK, 0)
    found = warm(session, strategy).memory.kv_cache
    session.close()
    return found


@pytest.mark.parametrize("part", CACHE_SHARES)
def test_an_8_bit_cache_of_the_real_model_is_a_quarter_and_keeps_its_rule(part, reference, capsys):
    """The rule of 8-bit caches: what each side writes first is in the other's top 8."""
    share = cache_bytes(f"fp32+{part}") / cache_bytes("fp32")
    assert share == pytest.approx(CACHE_SHARES[part], rel=0.03)
    session = opened(f"fp32+{part}")
    found = agreement(session, f"fp32+{part}", reference)
    session.close()
    say(capsys, part, found, f"cache {share:.3f} of fp32's")
    assert found.rule.kind == "kv-8-bit"
    assert found.rule.reasons(found) == ()


def test_a_cache_with_a_wrong_scale_breaks_the_rule_of_8_bit_caches(reference, monkeypatch):
    """The negative control: what is read is twice what was written."""
    kept = kv_cache._dequantized
    monkeypatch.setattr(kv_cache, "_dequantized", lambda pair, like: 2 * kept(pair, like))
    session = opened("fp32+kv-int8")
    found = agreement(session, "fp32+kv-int8", reference)
    session.close()
    assert len(found.rule.reasons(found)) == 1


@pytest.mark.parametrize("base", ["fp32", "nf4"])
def test_two_adapters_of_the_real_model_are_in_force_switched_and_mixed(base, adapters):
    """On nf4 it is QLoRA.

    Each gives what it gives alone; a batch of one row through each has neither's tokens alone.
    """
    session = opened("+".join([base, *(f"lora:{folder}" for folder in adapters)]))
    assert [
        (g.name, g.rank, g.tensors, g.tensors_equal)
        for g in session.opened().effective.resident_adapters
    ] == [
        ("a", 4, 180, 180),
        ("b", 8, 180, 180),
    ]
    found = {}
    for names in (("a",), ("b",), ("base",), ("a", "b")):
        session.use_adapters(names)
        found[names] = session.run(WORK, 0).outputs_hash
    session.close()
    assert len(set(found.values())) == 4
    alone = opened(f"{base}+lora:{adapters[1]}")
    assert alone.run(WORK, 0).outputs_hash == found["b",]
    alone.close()


def test_a_merged_adapter_of_the_real_model_gives_the_logits_of_the_unmerged_one(
    adapters, tmp_path
):
    """By the rule of merged adapters; the other adapter merged is the negative control."""
    unmerged = f"fp32+lora:{adapters[0]}"
    session = opened(unmerged)
    session.make_reference(CHAT, 4, 8, str(tmp_path / "unmerged.ref"))
    session.close()
    held = {}
    for folder in adapters:
        session = opened(f"fp32+lora:{folder}:merged")
        rows = session.compare_reference(str(tmp_path / "unmerged.ref"), 8)
        session.close()
        found = Agreement(rows, rule=default_rule(plan_of(f"{unmerged}:merged"), plan_of(unmerged)))
        assert found.rule.kind == "adapter-merged-fp32"
        held[folder.name] = found.rule.reasons(found) == ()
    assert held == {"a": True, "b": False}


def test_continuous_batches_of_the_real_model_give_the_tokens_of_static_ones():
    """Six chat prompts of different lengths, in fp32."""
    work = Batch(prompts=CHAT, requests=6, max_new_tokens=(4, 12), batch=3)
    hashes = []
    for strategy in ("fp32", "fp32+continuous"):
        session = opened(strategy)
        hashes.append(session.run(work, 0).outputs_hash)
        warm(session, strategy)
        session.close()
    assert hashes[0] == hashes[1]


def test_the_real_model_answers_from_disk_as_from_memory():
    """All of it waits in files, the table that head and embedding share once for each.

    Nearly nothing lies in memory.
    """
    whole = opened("fp32")
    expected = whole.run(WORK, 0).outputs_hash
    whole.close()
    session = opened("fp32+offload-disk")
    assert session.opened().effective.offloaded_bytes == {"disk": 4 * (134_515_008 + 49_152 * 576)}
    assert session.opened().effective.weights_bytes < 5.4e6
    assert session.run(WORK, 0).outputs_hash == expected
    session.close()
