"""Adapters, assisted decoding and 8-bit caches on a CUDA device.

They show memory, every kind of base, and equal tokens.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.workloads import Decode, PromptSet

pytestmark = pytest.mark.gpu

WORK = Decode(batch=2, prompt_tokens=16, new_tokens=16)
LONG = Decode(batch=4, prompt_tokens=2048, new_tokens=16)
TARGETS = ["q_proj", "v_proj"]


def engine():
    """Imported late: it brings torch."""
    from pytest_llmperf.engines.transformers import TransformersEngine

    return TransformersEngine()


def plan(strategy: str, *, model: str = "arch:small-llama", **fields) -> LoadPlan:
    return parse(strategy).apply(LoadPlan(model=model_ref(model), device="cuda", **fields))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> list[Path]:
    """Two random adapters of arch:small-llama, of rank 8 and 16."""
    import torch
    from peft import LoraConfig, get_peft_model

    from pytest_llmperf.engines.loading import arch

    root, folders = tmp_path_factory.mktemp("adapters"), []
    for seed, (name, rank) in enumerate((("a", 8), ("b", 16))):
        base = arch.build(
            "small-llama", dtype=torch.float32, device=torch.device("cpu"), seed=0, attention=None
        )
        wrapped = get_peft_model(
            base,
            LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM"),
        )
        generator = torch.Generator().manual_seed(seed)
        for key, weight in wrapped.named_parameters():
            if "lora_" in key:
                weight.data = torch.randn(weight.shape, generator=generator).mul(0.1)
        wrapped.save_pretrained(root / name, save_embedding_layers=False)
        folders.append(root / name)
    return folders


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("base", ["fp32", "bf16", "bf16+nf4", "bf16+int8", "bf16+int8wo"])
def test_adapters_are_in_force_on_every_base_and_switch(adapters, base):
    """On quantized weights too; switched, each gives what it gives alone."""
    text = "+".join([base, *(f"lora:{folder}" for folder in adapters)])
    asked = plan(text)
    session = engine().open(asked)
    require_in_effect(session.opened().effective, parse(text).promises(asked), "loaded")
    found = {}
    for name in ("a", "b", "base"):
        session.use_adapters((name,))
        found[name] = session.run(WORK, 0).outputs_hash
    assert len(set(found.values())) == 3
    session.use_adapters(("a", "base"))
    assert session.run(WORK, 0).outputs_hash not in found.values()
    session.close()
    alone = engine().open(plan(f"{base}+lora:{adapters[1]}"))
    assert alone.run(WORK, 0).outputs_hash == found["b"]
    alone.close()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("loop", ["", "+static-cache+compile"])
def test_merged_agrees_with_unmerged_in_fp32(adapters, loop, tmp_path):
    """The compiled loop takes an adapter beside the weights as well as in them."""
    unmerged = engine().open(plan(f"fp32+lora:{adapters[0]}{loop}"))
    unmerged.make_reference(PromptSet.synthetic(1), 8, 4, str(tmp_path / "ref"))
    unmerged.close()
    merged = engine().open(plan(f"fp32+lora:{adapters[0]}:merged{loop}"))
    rows = merged.compare_reference(str(tmp_path / "ref"), 4)
    merged.close()
    assert max(row.max_abs_logit_error for row in rows) < 1e-3
    assert all(row.first_divergence is None for row in rows)


@pytest.mark.parametrize(("cache", "share"), [("kv-int8", 0.52), ("kv-fp8", 0.51)])
def test_an_8_bit_cache_takes_half_of_a_16_bit_one(cache, share):
    """On 2,048 tokens of 4 sequences, seen in its own tensors."""
    from transformers import cache_utils

    if cache == "kv-fp8" and not hasattr(cache_utils, "Fp8QuantizedLayer"):
        pytest.skip("transformers before 5.21 has no fp8 cache")
    sizes = {}
    for strategy in ("bf16", f"bf16+{cache}"):
        asked = plan(strategy)
        session = engine().open(asked)
        session.run(LONG, 0)
        described = session.describe()
        require_in_effect(described.effective, parse(strategy).promises(asked), "warm")
        sizes[strategy] = described.memory.kv_cache
        session.close()
    assert sizes[f"bf16+{cache}"] <= share * sizes["bf16"]


@pytest.mark.parametrize("assist", ["prompt-lookup", "assisted:arch:small-llama"])
def test_assisted_decoding_gives_the_tokens_of_plain_decoding_in_fp32(assist):
    """Equal tokens; a model that assists itself needs a sixth of the forward passes."""
    work = Decode(batch=1, prompt_tokens=32, new_tokens=48)
    plain = engine().open(plan("fp32"))
    expected = plain.run(work, 0)
    plain.close()
    asked = plan(f"fp32+{assist}")
    session = engine().open(asked)
    ran = session.run(work, 0)
    require_in_effect(session.describe().effective, parse(asked.strategy).promises(asked), "warm")
    session.close()
    assert ran.outputs_hash == expected.outputs_hash
    assert ran.trace.forwards <= (8 if assist.startswith("assisted") else 48)
