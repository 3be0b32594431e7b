"""Pruning by the transformers engine, on small models of both families.

It is in effect, or refused.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
from msgspec import structs
from test_load_real import write_gguf

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.errors import LoadError, NotInEffect
from pytest_llmperf.strategies import parse, require_in_effect

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from pytest_llmperf.engines.transformers import prune as package
from pytest_llmperf.engines.transformers.effective import describe
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.engines.transformers.prune import semi_structured, unstructured
from pytest_llmperf.engines.transformers.prune.blocks import decoder_blocks, matrix
from pytest_llmperf.engines.transformers.prune.calibration import calibration, in_rows

ARCHS = ("arch:tiny-llama", "arch:tiny-falcon")
SHARES = ("magnitude:0.5", "wanda:0.5", "sparsegpt:0.5", "wanda:0.3")
FACTORY = """
import transformers

def build():
    shape = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).eval()
"""
PATTERNS = ("magnitude:2:4", "wanda:2:4", "sparsegpt:2:4")


def plan_for(strategy, name="arch:tiny-llama", **fields):
    return parse(strategy).apply(LoadPlan(model=model_ref(name), **fields))


def loaded_under(strategy, name="arch:tiny-llama"):
    plan = plan_for(strategy, name)
    return load(plan), parse(strategy).promises(plan)


def weights(model):
    """The matrices of the decoder blocks, by name."""
    return {
        name: matrix(layer)
        for block in decoder_blocks(model)
        for name, layer in block.linears.items()
    }


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize(
    "strategy", [*SHARES, *PATTERNS, "bf16+wanda:0.5", "fp16+magnitude:0.7", "bf16-mixed+wanda:0.5"]
)
def test_a_pruning_is_in_effect_after_loading(name, strategy):
    """Its share of every linear layer of the blocks is zero, and nothing else was touched."""
    loaded, promises = loaded_under(strategy, name)
    plain = load(plan_for(strategy.partition("+")[0] if "+" in strategy else "auto", name))
    found = describe(loaded)
    require_in_effect(found, promises, "loaded")
    assert found.sparsity == pytest.approx(found.pruned.sparsity)
    assert (
        found.pruned.layers
        == len(weights(loaded.model))
        == {"arch:tiny-llama": 14, "arch:tiny-falcon": 8}[name]
    )
    assert any("lm_head" in layer for layer in found.pruned.left_out)
    pruned = set(weights(loaded.model))
    for key, value in plain.model.state_dict().items():
        if key.removesuffix(".weight") not in pruned:
            assert torch.equal(value, loaded.model.state_dict()[key])


def model_of_kind(kind, folder):
    """The name of a tiny model that is read from files, or built by a function."""
    if kind == "gguf":
        return str(write_gguf(folder / "tiny.gguf"))
    if kind == "factory":
        (folder / "tiny_project.py").write_text(FACTORY, encoding="utf-8")
        return "tiny_project:build"
    load(plan_for("auto")).model.save_pretrained(folder / "saved")
    return str(folder / "saved")


@pytest.mark.parametrize(
    ("kind", "source"),
    [("folder", "synthetic:0"), ("gguf", "short-chat"), ("factory", "synthetic:0")],
)
@pytest.mark.parametrize("strategy", ["wanda:0.5", "structured:0.3"])
def test_every_kind_of_model_is_pruned(tmp_path, monkeypatch, kind, source, strategy):
    """Calibrated on text where there is a tokenizer."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))
    loaded, promises = loaded_under(strategy, model_of_kind(kind, tmp_path))
    found = describe(loaded)
    require_in_effect(found, promises, "loaded")
    assert found.pruned.method["calibration"] == source


@pytest.mark.parametrize("strategy", ["magnitude:0.5", "wanda:0.5", "wanda:2:4"])
def test_the_weights_that_stay_keep_their_values(strategy):
    """Only SparseGPT corrects them."""
    pruned, plain = weights(load(plan_for(strategy)).model), weights(load(plan_for("auto")).model)
    for name, weight in pruned.items():
        assert torch.equal(weight, plain[name].masked_fill(weight == 0, 0))


def naive_wanda(model, rows, keep):
    """Wanda by the book, with NumPy's sort of each row.

    Each block has a forward pass of the whole model, whose earlier blocks are pruned.
    """
    for block in decoder_blocks(model):
        inputs = {name: [] for name in block.linears}
        hooks = [
            layer.register_forward_hook(
                lambda _m, args, _out, into=inputs[name]: into.append(args[0].numpy())
            )
            for name, layer in block.linears.items()
        ]
        with torch.no_grad():
            model(input_ids=rows, use_cache=False)
        for hook in hooks:
            hook.remove()
        for name, layer in block.linears.items():
            norms = np.linalg.norm(
                np.concatenate(inputs[name]).reshape(-1, layer.in_features).astype(np.float64),
                axis=0,
            )
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
@pytest.mark.parametrize(
    ("strategy", "keep"), [("wanda:0.5", half_of_the_row), ("wanda:2:4", half_of_each_four)]
)
def test_wanda_is_the_papers(name, strategy, keep):
    """At least 99.9 % of the mask's entries are those of an independent implementation."""
    ours = weights(load(plan_for(strategy, name)).model)
    plain = load(plan_for("fp32", name))
    rows = calibration(plain.model, None, plain.device, 0).rows
    theirs = weights(naive_wanda(plain.model, rows, keep))
    equal = [(ours[key] == 0) == (theirs[key] == 0) for key in theirs]
    assert sum(int(e.sum()) for e in equal) >= 0.999 * sum(e.numel() for e in equal)


def test_wanda_is_not_magnitude():
    """The negative control of the comparison, without the inputs' norms.

    Then more than one entry in a thousand differs.
    """
    wanda, magnitude = (
        weights(load(plan_for(strategy)).model) for strategy in ("wanda:0.5", "magnitude:0.5")
    )
    different = [(wanda[key] == 0) != (magnitude[key] == 0) for key in wanda]
    assert sum(int(d.sum()) for d in different) > 0.001 * sum(d.numel() for d in different)


def test_what_was_done_is_recorded():
    """The calibration set by name, hash and tokens, the scores and the time.

    Another seed draws another set.
    """
    method = describe(loaded_under("sparsegpt:0.5")[0]).pruned.method
    assert (method["calibration"], method["calibration_tokens"], method["dampening"]) == (
        "synthetic:0",
        8 * 128,
        0.01,
    )
    assert method["seconds"] > 0
    other = load(plan_for("sparsegpt:0.5", seed=1)).pruned.report().method
    assert other["calibration_hash"] != method["calibration_hash"]
    assert load(plan_for("magnitude:0.5")).pruned.report().method["calibration"] == "none"


def test_a_report_says_that_zeros_buy_nothing():
    """Unstructured zeros, and a pattern on a device without sparse tensor cores."""
    (note,) = describe(loaded_under("wanda:0.5")[0]).notes
    assert note.startswith("wanda:0.5 saves no memory and no time")
    (note,) = describe(loaded_under("wanda:2:4")[0]).notes
    assert "cpu has no sparse tensor cores" in note
    assert describe(loaded_under("structured:0.3")[0]).notes == ()


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("strategy", ["wanda:0.5", "wanda:2:4", "magnitude:0.5"])
def test_a_model_that_was_pruned_less_than_it_claims_is_refused(monkeypatch, name, strategy):
    """A mask of 40 %: counted from the weights, whatever the plan says."""
    honest = unstructured.choose
    asked = package.parse_pruning("wanda:0.4")
    monkeypatch.setattr(unstructured, "choose", lambda scores, _asked: honest(scores, asked))
    loaded, promises = loaded_under(strategy, name)
    with pytest.raises(
        NotInEffect, match=r"of \d+ linear layers are zero \(40\.0%\), asked for 50\.0%"
    ):
        require_in_effect(describe(loaded), promises, "loaded")


def test_half_of_the_weights_in_the_wrong_places_is_no_pattern(monkeypatch):
    """Half of each row, but not two of each four."""
    honest = unstructured.choose
    asked = package.parse_pruning("wanda:0.5")
    monkeypatch.setattr(unstructured, "choose", lambda scores, _asked: honest(scores, asked))
    loaded, promises = loaded_under("wanda:2:4")
    with pytest.raises(
        NotInEffect, match=r"\d+ of 21504 groups of 4 hold more than 2 weights, asked for 2:4"
    ):
        require_in_effect(describe(loaded), promises, "loaded")


def test_zeros_that_are_filled_later_are_seen():
    """What changes the weights after pruning (a merged adapter) breaks the promise."""
    loaded, promises = loaded_under("wanda:0.5")
    require_in_effect(describe(loaded), promises, "loaded")
    layer = loaded.model.model.layers[1].mlp.down_proj
    layer.weight.data += 0.01
    with pytest.raises(
        NotInEffect, match=r"model\.layers\.1\.mlp\.down_proj lacks 0\.0%|are zero \(4\d\.\d%\)"
    ):
        require_in_effect(describe(loaded), promises, "loaded")


def test_a_layer_that_was_replaced_keeps_its_first_count():
    """As quantization does: packed weights cannot be counted, and the old layer leaves memory."""
    loaded, promises = loaded_under("wanda:0.5")
    for block in loaded.model.model.layers:
        block.mlp.down_proj = torch.nn.Identity()
    assert loaded.pruned.layers["model.layers.0.mlp.down_proj"]() is None
    require_in_effect(
        structs.replace(describe(load(plan_for("auto"))), pruned=loaded.pruned.report()),
        promises[2:],
        "loaded",
    )


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("strategy", ["bf16+int8wo+wanda:0.5", "bf16+int8wo+structured:0.3"])
def test_what_pruning_left_is_quantized(name, strategy):
    """Both promises hold: of the quantized layers, and of what was gone before they were."""
    pytest.importorskip("torchao")
    loaded, promises = loaded_under(strategy, name)
    found = describe(loaded)
    require_in_effect(found, promises, "loaded")
    assert found.quantized.converted == found.pruned.layers


@pytest.mark.parametrize("strategy", ["wanda:0.5", "sparsegpt:0.5", "structured:0.3"])
def test_calibration_inputs_that_are_not_finite_are_an_error(monkeypatch, strategy):
    """A mask made of NaN would be arbitrary."""
    real = package.calibration

    def broken(model, *args):
        model.get_input_embeddings().weight.data[:] = torch.nan
        return real(model, *args)

    monkeypatch.setattr(package, "calibration", broken)
    with pytest.raises(
        LoadError,
        match=r"the calibration inputs of model\.layers\.0\.\S+ are not finite \(\d+ of \d+",
    ):
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


# 2:4 on sparse tensor cores


@pytest.mark.parametrize(
    ("capability", "cusparselt", "expected"),
    [
        ((7, 5), True, "need CUDA compute capability 8.0, this device has 7.5"),
        ((8, 0), False, semi_structured.SparseSemiStructuredTensorCUTLASS),
        ((8, 6), True, semi_structured.SparseSemiStructuredTensorCUSPARSELT),
        ((9, 0), True, semi_structured.SparseSemiStructuredTensorCUSPARSELT),
        (
            (9, 0),
            False,
            (
                "this torch has no cuSPARSELt, and its CUTLASS kernels are not for "
                "compute capability 9.0"
            ),
        ),
    ],
)
def test_sparse_kernels_are_those_that_the_device_has(
    monkeypatch, capability, cusparselt, expected
):
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
