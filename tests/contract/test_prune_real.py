"""Pruning of the real model, calibrated on text.

It is in effect, and Wanda and SparseGPT have their advantage over magnitude.
"""

from __future__ import annotations

import os

import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.strategies import parse, require_in_effect

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from pytest_llmperf.engines.transformers.effective import describe
from pytest_llmperf.engines.transformers.load import load

pytestmark = pytest.mark.real_model

TEXT = (
    "The harbour was quiet in the morning. A fisherman repaired his nets on the quay while his "
    "daughter counted the boats that had come back from the sea. When the sun rose over the hills, "
    "the market opened, and people came to buy bread, fish and vegetables. In the afternoon the "
    "wind grew stronger, and the boats were tied to the pier with heavy ropes."
)
nightly = pytest.mark.skipif(
    "LLMPERF_NIGHTLY" not in os.environ, reason="minutes on two cores: make nightly runs it"
)


def pruned(strategy):
    """The real model under a strategy whose promises hold."""
    plan = parse(strategy).apply(LoadPlan(model=model_ref("smollm2-135m")))
    loaded = load(plan)
    require_in_effect(describe(loaded), parse(strategy).promises(plan), "loaded")
    return loaded


def loss(loaded):
    """Nats a token on a text that is not among the prompts."""
    ids = loaded.tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        return float(loaded.model(ids, labels=ids).loss)


def test_the_real_model_is_pruned_by_magnitude():
    """Its 210 linear layers; the tied head and embedding are left out, and named."""
    found = pruned("fp32+magnitude:0.3").pruned.report()
    assert (found.layers, found.weights, found.left_out) == (
        210,
        106_168_320,
        ("model.embed_tokens", "lm_head"),
    )
    assert found.sparsity == pytest.approx(0.3, abs=1e-4)


@nightly
def test_methods_that_look_at_inputs_lose_less_than_magnitude():
    """At half of the weights, on text, as in the papers; calibrated on the bundled prompts."""
    losses = {}
    for method in ("magnitude", "wanda", "sparsegpt"):
        loaded = pruned(f"fp32+{method}:0.5")
        losses[method] = loss(loaded)
        if method != "magnitude":
            assert loaded.pruned.report().method["calibration"] == "short-chat"
            assert loaded.pruned.report().method["calibration_tokens"] == 1280
    assert losses["wanda"] < losses["magnitude"]
    assert losses["sparsegpt"] < losses["magnitude"]


@nightly
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_two_of_every_four_weights_of_the_real_model_are_gone(method):
    """26,542,080 groups of four, none with more than two weights left.

    Stored dense, as there are no kernels for it here.
    """
    found = pruned(f"fp32+{method}:2:4").pruned.report()
    assert (found.groups, found.broken_groups, found.stored) == (26_542_080, 0, "dense")
    assert found.sparsity == pytest.approx(0.5, abs=1e-4)


@nightly
def test_the_real_model_loses_heads_and_channels_and_still_generates():
    """Of three key-value heads with three query heads each none or one goes.

    The channels make up the share.
    """
    loaded = pruned("fp32+structured:0.35")
    assert (loaded.model.config.num_attention_heads, loaded.model.config.num_key_value_heads) == (
        6,
        2,
    )
    ids = loaded.tokenizer(TEXT, return_tensors="pt").input_ids
    assert loaded.model.generate(ids, max_new_tokens=4).shape[1] == ids.shape[1] + 4
    assert torch.isfinite(torch.tensor(loss(loaded)))
