"""Pruning by the transformers engine: in effect on small models of both families, and refused where it is not."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from msgspec import structs

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models import model_ref
from pytest_llmperf.errors import LoadError, NotInEffect
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.workloads import Decode, PromptSet

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from pytest_llmperf.engines.transformers import prune as package  # noqa: E402
from pytest_llmperf.engines.transformers.effective import describe  # noqa: E402
from pytest_llmperf.engines.transformers.load import load  # noqa: E402
from pytest_llmperf.engines.transformers.prune import families, semi_structured, structured, unstructured  # noqa: E402
from pytest_llmperf.engines.transformers.prune.blocks import decoder_blocks, matrix  # noqa: E402
from pytest_llmperf.engines.transformers.prune.calibration import calibration, in_rows  # noqa: E402
from pytest_llmperf.engines.transformers.session import TransformersSession  # noqa: E402

ARCHS = ("arch:tiny-llama", "arch:tiny-falcon")
SHARES = ("magnitude:0.5", "wanda:0.5", "sparsegpt:0.5", "wanda:0.3")
PATTERNS = ("magnitude:2:4", "wanda:2:4", "sparsegpt:2:4")


def plan_for(strategy, name="arch:tiny-llama", **fields):
    return parse(strategy).apply(LoadPlan(model=model_ref(name), **fields))


def loaded_under(strategy, name="arch:tiny-llama"):
    plan = plan_for(strategy, name)
    return load(plan), parse(strategy).promises(plan)


def weights(model):
    """The matrices of the decoder blocks, by name."""
    return {name: matrix(layer) for block in decoder_blocks(model) for name, layer in block.linears.items()}


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("strategy", [*SHARES, *PATTERNS, "bf16+wanda:0.5", "fp16+magnitude:0.7", "bf16-mixed+wanda:0.5"])
def test_a_pruning_is_in_effect_after_loading(name, strategy):
    """Its share of every linear layer of the blocks is zero, and nothing else was touched."""
    loaded, promises = loaded_under(strategy, name)
    plain = load(plan_for(strategy.partition("+")[0] if "+" in strategy else "auto", name))
    found = describe(loaded)
    require_in_effect(found, promises, "loaded")
    assert found.sparsity == pytest.approx(found.pruned.sparsity)
    assert found.pruned.layers == len(weights(loaded.model)) == {"arch:tiny-llama": 14, "arch:tiny-falcon": 8}[name]
    assert any("lm_head" in layer for layer in found.pruned.left_out)
    pruned = set(weights(loaded.model))
    for key, value in plain.model.state_dict().items():
        if key.removesuffix(".weight") not in pruned:
            assert torch.equal(value, loaded.model.state_dict()[key])


@pytest.mark.parametrize("strategy", ["magnitude:0.5", "wanda:0.5", "wanda:2:4"])
def test_the_weights_that_stay_keep_their_values(strategy):
    """Only SparseGPT corrects them."""
    pruned, plain = weights(load(plan_for(strategy)).model), weights(load(plan_for("auto")).model)
    for name, weight in pruned.items():
        assert torch.equal(weight, plain[name].masked_fill(weight == 0, 0))


def naive_wanda(model, rows, keep):
    """Wanda by the book: for each block a forward of the whole model, whose earlier blocks are pruned; NumPy sorts each row."""
    for block in decoder_blocks(model):
        inputs = {name: [] for name in block.linears}
        hooks = [
            layer.register_forward_hook(lambda _m, args, _out, into=inputs[name]: into.append(args[0].numpy()))
            for name, layer in block.linears.items()
        ]
        with torch.no_grad():
            model(input_ids=rows, use_cache=False)
        for hook in hooks:
            hook.remove()
        for name, layer in block.linears.items():
            norms = np.linalg.norm(np.concatenate(inputs[name]).reshape(-1, layer.in_features).astype(np.float64), axis=0)
            weight = layer.weight.data.numpy()
            for row in weight:
                keep(row, np.abs(row) * norms)
    return model


def half_of_the_row(row, scores):
    row[np.argsort(scores, kind="stable")[: len(row) // 2]] = 0


def half_of_each_four(row, scores):
    for first in range(0, len(row), 4):
        row[first + np.argsort(scores[first : first + 4], kind="stable")[:2]] = 0


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize(("strategy", "keep"), [("wanda:0.5", half_of_the_row), ("wanda:2:4", half_of_each_four)])
def test_wanda_is_the_papers(name, strategy, keep):
    """At least 99.9 % of the mask's entries are those of an independent implementation."""
    ours = weights(load(plan_for(strategy, name)).model)
    plain = load(plan_for("fp32", name))
    rows = calibration(plain.model, None, plain.device, 0).rows
    theirs = weights(naive_wanda(plain.model, rows, keep))
    equal = [(ours[key] == 0) == (theirs[key] == 0) for key in theirs]
    assert sum(int(e.sum()) for e in equal) >= 0.999 * sum(e.numel() for e in equal)


def test_wanda_is_not_magnitude():
    """The negative control of the comparison: without the inputs' norms more than one entry in a thousand differs."""
    wanda, magnitude = (weights(load(plan_for(strategy)).model) for strategy in ("wanda:0.5", "magnitude:0.5"))
    different = [(wanda[key] == 0) != (magnitude[key] == 0) for key in wanda]
    assert sum(int(d.sum()) for d in different) > 0.001 * sum(d.numel() for d in different)


def test_what_was_done_is_recorded():
    """The calibration set by name, hash and tokens, the scores and the time; another seed draws another set."""
    method = describe(loaded_under("sparsegpt:0.5")[0]).pruned.method
    assert (method["calibration"], method["calibration_tokens"], method["dampening"]) == ("synthetic:0", 8 * 128, 0.01)
    assert method["seconds"] > 0
    other = load(plan_for("sparsegpt:0.5", seed=1)).pruned.now().method
    assert other["calibration_hash"] != method["calibration_hash"]
    assert load(plan_for("magnitude:0.5")).pruned.now().method["calibration"] == "none"


def test_a_report_says_that_zeros_buy_nothing():
    """Unstructured zeros, and a pattern on a device without sparse tensor cores."""
    (note,) = describe(loaded_under("wanda:0.5")[0]).notes
    assert note.startswith("wanda:0.5 saves no memory and no time")
    (note,) = describe(loaded_under("wanda:2:4")[0]).notes
    assert "cpu has no sparse tensor cores" in note
    (note,) = describe(loaded_under("structured:0.3")[0]).notes or ("",)
    assert "no time" not in note


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("strategy", ["wanda:0.5", "wanda:2:4", "magnitude:0.5"])
def test_a_model_that_was_pruned_less_than_it_claims_is_refused(monkeypatch, name, strategy):
    """A mask of 40 %: counted from the weights, whatever the plan says."""
    honest = unstructured.choose
    asked = package.parse_pruning("wanda:0.4")
    monkeypatch.setattr(unstructured, "choose", lambda scores, _asked: honest(scores, asked))
    loaded, promises = loaded_under(strategy, name)
    with pytest.raises(NotInEffect, match=r"of \d+ linear layers are zero \(40\.0%\), asked for 50\.0%"):
        require_in_effect(describe(loaded), promises, "loaded")


def test_half_of_the_weights_in_the_wrong_places_is_no_pattern(monkeypatch):
    """Half of each row, but not two of each four."""
    honest = unstructured.choose
    asked = package.parse_pruning("wanda:0.5")
    monkeypatch.setattr(unstructured, "choose", lambda scores, _asked: honest(scores, asked))
    loaded, promises = loaded_under("wanda:2:4")
    with pytest.raises(NotInEffect, match=r"\d+ of 21504 groups of 4 hold more than 2 weights, asked for 2:4"):
        require_in_effect(describe(loaded), promises, "loaded")


def test_zeros_that_are_filled_later_are_seen():
    """What changes the weights after pruning (a merged adapter) breaks the promise."""
    loaded, promises = loaded_under("wanda:0.5")
    require_in_effect(describe(loaded), promises, "loaded")
    layer = loaded.model.model.layers[1].mlp.down_proj
    layer.weight.data += 0.01
    with pytest.raises(NotInEffect, match=r"model\.layers\.1\.mlp\.down_proj lacks 0\.0%|are zero \(4\d\.\d%\)"):
        require_in_effect(describe(loaded), promises, "loaded")


def test_a_layer_that_was_replaced_keeps_its_first_count():
    """As quantisation does: what is packed cannot be counted, and the old layer is not held in memory."""
    loaded, promises = loaded_under("wanda:0.5")
    for block in loaded.model.model.layers:
        block.mlp.down_proj = torch.nn.Identity()
    assert loaded.pruned.layers["model.layers.0.mlp.down_proj"]() is None
    require_in_effect(structs.replace(describe(load(plan_for("auto"))), pruned=loaded.pruned.now()), promises[2:], "loaded")


@pytest.mark.parametrize("strategy", ["wanda:0.5", "sparsegpt:0.5", "structured:0.3"])
def test_calibration_inputs_that_are_not_finite_are_an_error(monkeypatch, strategy):
    """A mask made of NaN would be arbitrary."""
    real = package.calibration

    def broken(model, *args):
        model.get_input_embeddings().weight.data[:] = torch.nan
        return real(model, *args)

    monkeypatch.setattr(package, "calibration", broken)
    with pytest.raises(LoadError, match=r"the calibration inputs of model\.layers\.0\.\S+ are not finite \(\d+ of \d+"):
        load(plan_for(strategy))


def test_columns_that_do_not_divide_by_four_have_no_pattern(monkeypatch):
    """The layer and its columns are named, and what works instead."""
    real = package.calibration

    def narrow(model, *args):
        model.model.layers[0].mlp.down_proj.weight.data = torch.zeros(64, 158)
        return real(model, *args)

    monkeypatch.setattr(package, "calibration", narrow)
    with pytest.raises(LoadError, match=r"layers\.0\.mlp\.down_proj with 158.*'wanda:0.5'"):
        load(plan_for("wanda:2:4"))


def test_a_model_without_decoder_blocks_cannot_be_pruned():
    """They are found by the number in the config."""
    model = load(plan_for("auto")).model
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 5
    model.config = config
    with pytest.raises(LoadError, match="holds no list of 5 modules"):
        decoder_blocks(model)


def test_calibration_rows_are_consecutive_and_of_one_length():
    """What does not fill a row is left out, unless there is nothing else."""
    assert in_rows(list(range(7)), 3).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert in_rows([4, 5], 3).tolist() == [[4, 5]]


# Structured


def families_under_test():
    """Tiny models of every layout of heads: grouped, shared by all, one each, and Falcon's three."""
    llama = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 8}
    falcon = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "alibi": False}
    return {
        "llama grouped": transformers.LlamaConfig(**llama, num_key_value_heads=4),
        "llama one for all": transformers.LlamaConfig(**llama, num_key_value_heads=1),
        "llama one each, biases": transformers.LlamaConfig(**llama, num_key_value_heads=8, attention_bias=True, mlp_bias=True),
        "falcon-7b's": transformers.FalconConfig(**falcon, multi_query=True, new_decoder_architecture=False),
        "falcon-40b's": transformers.FalconConfig(**falcon, num_kv_heads=4, new_decoder_architecture=True),
        "falcon one each, biases": transformers.FalconConfig(**falcon, multi_query=False, bias=True),
    }


def build(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model.requires_grad_(requires_grad=False)


def pruned_structures(model, share):
    plan = LoadPlan(model=model_ref("arch:tiny-llama"), pruning=f"structured:{share}")
    return package.prune(model, None, plan, torch.device("cpu")).now()


def greedy(model, cache):
    ids = torch.arange(1, 9)[None]
    more = {"cache_implementation": "static", "disable_compile": True} if cache == "static" else {}
    return model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0, **more)


@pytest.mark.parametrize("layout", families_under_test())
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_removed_heads_and_channels_leave_a_smaller_model_that_works(layout, share):
    """The share of its weights, whole heads, and generating with both kinds of cache and another attention."""
    model = build(families_under_test()[layout])
    before = sum(p.numel() for p in model.parameters())
    found = pruned_structures(model, share)
    assert found.sparsity == pytest.approx(share, abs=0.005)
    assert sum(p.numel() for p in model.parameters()) <= before - (found.weights_before - found.weights)
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
    """The smaller model computes what the whole one does with the outgoing weights of the same structures at zero."""
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
            families.submodule(block, kind.consumer).weight.data[:, kind.columns[gone].flatten()] = 0
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
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize("name", ARCHS)
def test_a_structured_pruning_is_in_effect_through_a_session(name):
    """Promises kept, bytes really gone, and a decode with a static cache of the kept heads."""
    strategy = "structured:0.3+static-cache"
    plan = plan_for(strategy, name)
    session, whole = TransformersSession(load(plan)), describe(load(plan_for("auto", name)))
    ran = session.run(Decode(batch=2, prompt_tokens=8, new_tokens=4, prompts=PromptSet.synthetic(0)), 0)
    found = session.describe().effective
    require_in_effect(found, parse(strategy).promises(plan), "warm")
    gone = found.pruned.weights_before - found.pruned.weights
    assert found.weights_bytes == whole.weights_bytes - 4 * gone
    assert ran.step.flops_per_token == pytest.approx(2 * (sum(g.elements for g in whole.linears) - gone))
    session.close()


def test_more_than_there_is_cannot_be_removed():
    """Neither the last head nor the last channel goes."""
    with pytest.raises(LoadError, match="cannot go without the last of either"):
        load(plan_for("structured:0.99"))


def test_another_family_is_refused_with_what_works_instead():
    """A model that a factory builds shows its family only when it is there."""
    shape = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 512, "n_positions": 128}
    model = transformers.AutoModelForCausalLM.from_config(transformers.GPT2Config(**shape))
    with pytest.raises(LoadError, match=r"GPT2LMHeadModel is of family 'gpt2'.*llama, falcon.*'wanda:S'"):
        pruned_structures(model, 0.3)
    plan = LoadPlan(model=model_ref("arch:tiny-llama"), pruning="wanda:0.5")
    found = package.prune(model.eval(), None, plan, torch.device("cpu")).now()
    assert (found.layers, found.sparsity) == (8, pytest.approx(0.5, abs=0.001))


def test_slopes_by_head_are_refused():
    """ALiBi's biases go by the number of heads."""
    model = build(
        transformers.FalconConfig(vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=8, alibi=True)
    )
    with pytest.raises(LoadError, match="ALiBi"):
        pruned_structures(model, 0.3)


# 2:4 on sparse tensor cores


@pytest.mark.parametrize(
    ("capability", "cusparselt", "expected"),
    [
        ((7, 5), True, "need CUDA compute capability 8.0, this device has 7.5"),
        ((8, 0), False, semi_structured.SparseSemiStructuredTensorCUTLASS),
        ((8, 6), True, semi_structured.SparseSemiStructuredTensorCUSPARSELT),
        ((9, 0), True, semi_structured.SparseSemiStructuredTensorCUSPARSELT),
        ((9, 0), False, "this torch has no cuSPARSELt, and its CUTLASS kernels are not for compute capability 9.0"),
    ],
)
def test_sparse_kernels_are_those_that_the_device_has(monkeypatch, capability, cusparselt, expected):
    """By compute capability and what torch was built with; else the reason is said."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: cusparselt)
    found = semi_structured.backend(torch.device("cuda", 0))
    assert found is expected or (isinstance(expected, str) and expected in found)


def test_layers_that_the_kernels_cannot_take_stay_dense():
    """By dtype, shape and class."""
    kind = semi_structured.SparseSemiStructuredTensorCUSPARSELT
    assert semi_structured.takes(kind, torch.nn.Linear(64, 64, dtype=torch.bfloat16))
    assert not semi_structured.takes(kind, torch.nn.Linear(64, 64))
    assert not semi_structured.takes(kind, torch.nn.Linear(64, 63, dtype=torch.bfloat16))
    falcon = load(plan_for("bf16", "arch:tiny-falcon")).model
    assert not semi_structured.takes(kind, falcon.transformer.h[0].mlp.dense_h_to_4h)
