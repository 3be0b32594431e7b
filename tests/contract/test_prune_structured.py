"""Structured pruning by the transformers engine.

Heads and channels are really removed, and the others compute what they did.
"""

from __future__ import annotations

import copy

import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.errors import LoadError
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.workloads import Decode, PromptSet

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from pytest_llmperf.engines.transformers import prune as package
from pytest_llmperf.engines.transformers.effective import describe
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.engines.transformers.loaded import TransformersModel
from pytest_llmperf.engines.transformers.prune import families, structured
from pytest_llmperf.engines.transformers.prune.blocks import decoder_blocks

ARCHS = ("arch:tiny-llama", "arch:tiny-falcon")


def plan_for(strategy, name="arch:tiny-llama"):
    return parse(strategy).apply(LoadPlan(model=model_ref(name)))


def families_under_test():
    """Tiny models of every layout of heads: grouped, all shared, all apart, and Falcon's three."""
    llama = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
    }
    falcon = {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "alibi": False,
    }
    return {
        "llama grouped": transformers.LlamaConfig(**llama, num_key_value_heads=4),
        "llama one for all": transformers.LlamaConfig(**llama, num_key_value_heads=1),
        "llama one each, biases": transformers.LlamaConfig(
            **llama, num_key_value_heads=8, attention_bias=True, mlp_bias=True
        ),
        "falcon-7b's": transformers.FalconConfig(
            **falcon, multi_query=True, new_decoder_architecture=False
        ),
        "falcon-40b's": transformers.FalconConfig(
            **falcon, num_kv_heads=4, new_decoder_architecture=True
        ),
        "falcon one each, biases": transformers.FalconConfig(
            **falcon, multi_query=False, bias=True
        ),
    }


def build(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        copy.deepcopy(config), dtype=torch.float32
    ).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model.requires_grad_(requires_grad=False)


def pruned_structures(model, share):
    plan = LoadPlan(model=model_ref("arch:tiny-llama"), pruning=f"structured:{share}")
    return package.prune(model, None, plan, torch.device("cpu")).report()


def greedy(model, cache):
    ids = torch.arange(1, 9)[None]
    more = {"cache_implementation": "static", "disable_compile": True} if cache == "static" else {}
    return model.generate(
        ids, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0, **more
    )


@pytest.mark.parametrize("layout", families_under_test())
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_removed_heads_and_channels_leave_a_smaller_model_that_works(layout, share):
    """The share of weights, whole heads; it generates with both caches and another attention."""
    model = build(families_under_test()[layout])
    before = sum(p.numel() for p in model.parameters())
    found = pruned_structures(model, share)
    assert found.sparsity == pytest.approx(share, abs=0.005)
    assert sum(p.numel() for p in model.parameters()) <= before - (
        found.weights_before - found.weights
    )
    assert found.stored == "smaller"
    assert model.config.head_dim == 8
    tokens = greedy(model, "dynamic")
    assert torch.equal(greedy(model, "static"), tokens)
    model.set_attn_implementation("eager")
    assert torch.equal(greedy(model, "dynamic"), tokens)
    cache = model(torch.arange(1, 9)[None], use_cache=True).past_key_values
    assert cache.layers[0].keys.shape[-1] == 8


@pytest.mark.parametrize("layout", families_under_test())
def test_what_was_removed_is_what_zeros_would_remove(layout):
    """The smaller model computes what the whole one does with those structures at zero.

    Only their outgoing weights are.
    """
    config = families_under_test()[layout]
    small, whole = build(config), build(config)
    kept = {}
    real = structured.most_important

    def noted(kind, consumer, norms, keep):
        units = real(kind, consumer, norms, keep)
        kept.setdefault(kind.consumer, []).append(units)
        return units

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structured, "most_important", noted)
        pruned_structures(small, 0.4)
    family = families.family_of(whole)
    for kind in (family.attention(config), family.channels(config)):
        for block, units in zip(decoder_blocks(whole), kept[kind.consumer], strict=True):
            gone = torch.ones(kind.units, dtype=torch.bool)
            gone[units] = False
            families.submodule(block, kind.consumer).weight.data[
                :, kind.columns[gone].flatten()
            ] = 0
    ids = torch.arange(1, 33)[None]
    with torch.no_grad():
        torch.testing.assert_close(small(ids).logits, whole(ids).logits, atol=1e-5, rtol=1e-4)


def test_the_structures_that_stay_are_the_important_ones():
    """A channel whose outgoing weights are made large stays, one whose are made small goes."""
    model = build(families_under_test()["llama grouped"])
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data[:, 7] *= 100
        layer.mlp.down_proj.weight.data[:, 8] *= 0.001
    up = [layer.mlp.up_proj.weight.data.clone() for layer in model.model.layers]
    pruned_structures(model, 0.4)
    for rows, layer in zip(up, model.model.layers, strict=True):
        left = layer.mlp.up_proj.weight.data
        assert bool((left == rows[7]).all(1).any())
        assert not bool((left == rows[8]).all(1).any())


@pytest.mark.parametrize("layout", ["llama grouped", "llama one for all"])
def test_the_config_is_that_of_the_tensors(layout):
    """A llama built from the config of the smaller one has its shapes."""
    model = build(families_under_test()[layout])
    pruned_structures(model, 0.5)
    fresh = build(model.config)
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


@pytest.mark.parametrize("name", ARCHS)
def test_a_structured_pruning_is_in_effect_through_a_session(name):
    """Promises kept, bytes really gone, and a decode with a static cache of the kept heads."""
    strategy = "structured:0.3+static-cache"
    plan = plan_for(strategy, name)
    session, whole = TransformersModel(load(plan)), describe(load(plan_for("auto", name)))
    ran = session.run(
        Decode(batch=2, prompt_tokens=8, new_tokens=4, prompts=PromptSet.synthetic(0)), 0
    )
    found = session.describe().effective
    require_in_effect(found, parse(strategy).promises(plan), "warm")
    gone = found.pruned.weights_before - found.pruned.weights
    assert found.weights_bytes == whole.weights_bytes - 4 * gone
    assert ran.step.flops_per_token == pytest.approx(
        2 * (sum(g.elements for g in whole.linears) - gone)
    )
    session.close()


def test_more_than_there_is_cannot_be_removed():
    """Neither the last head nor the last channel goes."""
    with pytest.raises(LoadError, match="cannot go without the last of either"):
        load(plan_for("structured:0.99"))


def test_another_family_is_refused_with_what_works_instead():
    """A model that a factory builds shows its family only when it is there."""
    shape = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 512, "n_positions": 128}
    model = transformers.AutoModelForCausalLM.from_config(transformers.GPT2Config(**shape))
    with pytest.raises(
        LoadError, match=r"GPT2LMHeadModel is of family 'gpt2'.*llama, falcon.*'wanda:S'"
    ):
        pruned_structures(model, 0.3)
    plan = LoadPlan(model=model_ref("arch:tiny-llama"), pruning="wanda:0.5")
    found = package.prune(model.eval(), None, plan, torch.device("cpu")).report()
    assert (found.layers, found.sparsity) == (8, pytest.approx(0.5, abs=0.001))


def test_slopes_by_head_are_refused():
    """ALiBi's biases go by the number of heads."""
    model = build(
        transformers.FalconConfig(
            vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=8, alibi=True
        ),
    )
    with pytest.raises(LoadError, match="ALiBi"):
        pruned_structures(model, 0.3)
