"""Kinds of variant: which rule a plan gets.

Each rule accepts what it is for, and rejects what it is there to reject.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.synthetic_logits import noisy, prompts, scaled

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.agreement.kinds import DEFAULT_RULES, KINDS, QUANTIZATION_KINDS, kind_of
from pytest_llmperf.core.agreement.rules import Rule, default_rule, parse_rule
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.errors import NotMeasured, UsageError
from pytest_llmperf.strategies.table import TABLE

FP32 = LoadPlan(
    model=ModelRef(name="m", kind="builtin", location="m"), weights_dtype="float32", strategy="fp32"
)
BF16 = replace(FP32, weights_dtype="bfloat16", strategy="bf16")
FP16 = replace(FP32, weights_dtype="float16", strategy="fp16")


def plan(base=BF16, **fields):
    return replace(base, strategy="+".join([base.strategy, *map(str, fields.values())]), **fields)


INT8, NF4, PRUNED = (
    plan(quantization="int8"),
    plan(quantization="nf4:double"),
    plan(pruning="wanda:0.5"),
)
TUNED = plan(FP32, adapters=("/a",))


@pytest.mark.parametrize(
    ("candidate", "reference", "kind"),
    [
        (INT8, FP32, "8-bit"),
        (NF4, FP32, "4-bit"),
        (INT8, NF4, "4-bit"),
        (plan(quantization="gptq:/models/q"), FP32, "4-bit"),
        (plan(quantization="somebody's own"), FP32, "4-bit"),
        (plan(NF4, cache="static"), NF4, "bf16"),
        (PRUNED, FP32, "pruned"),
        (plan(PRUNED, quantization="nf4"), FP32, "pruned"),
        (plan(PRUNED, cache="static"), PRUNED, "bf16"),
        (plan(cache="int8"), BF16, "kv-8-bit"),
        (plan(cache="fp8"), FP32, "kv-8-bit"),
        (plan(INT8, cache="fp8"), FP32, "8-bit"),
        (plan(TUNED, merge_adapters=True), TUNED, "adapter-merged-fp32"),
        (plan(TUNED, merge_adapters=True, cache="static"), TUNED, "fp32"),
        (plan(adapters=("/a",), merge_adapters=True), plan(adapters=("/a",)), "adapter-merged"),
        (plan(NF4, adapters=("/a",), merge_adapters=True), plan(NF4, adapters=("/a",)), "4-bit"),
        (plan(INT8, adapters=("/a",), merge_adapters=True), plan(INT8, adapters=("/a",)), "8-bit"),
        (TUNED, FP32, "adapter"),
        (plan(NF4, adapters=("/a",)), FP32, "adapter"),
        (plan(FP32, adapters=("/a",)), plan(FP32, adapters=("/b",)), "adapter"),
        (plan(FP32, assist="prompt-lookup"), FP32, "assisted-fp32"),
        (plan(FP32, assist="prompt-lookup", cache="static"), FP32, "fp32"),
        (plan(assist="small"), BF16, "assisted"),
        (plan(assist="small"), FP32, "bf16"),
        (plan(INT8, assist="small"), BF16, "8-bit"),
        (plan(ranks=2), BF16, "parallel"),
        (plan(INT8, ranks=2), BF16, "8-bit"),
    ],
)
def test_a_variant_takes_the_coarsest_of_its_kinds(candidate, reference, kind):
    """Only what the two differ in counts; combinations take the rule of the coarsest."""
    assert kind_of(candidate, reference) == kind
    assert str(default_rule(candidate, reference)) == (DEFAULT_RULES[kind] or "none")


PLANS = st.builds(
    LoadPlan,
    model=st.just(FP32.model),
    weights_dtype=st.sampled_from(["auto", "float32", "float16", "bfloat16"]),
    autocast_dtype=st.sampled_from([None, "bfloat16"]),
    cache=st.sampled_from(["dynamic", "static", "int8"]),
    quantization=st.sampled_from([None, "int8", "nf4"]),
    pruning=st.sampled_from([None, "wanda:0.5"]),
    adapters=st.sampled_from([(), ("/a",), ("/a", "/b")]),
    merge_adapters=st.booleans(),
    assist=st.sampled_from([None, "prompt-lookup"]),
    ranks=st.sampled_from([1, 2]),
)


@given(PLANS, PLANS)
def test_every_pair_of_plans_has_a_kind_whoever_is_the_reference(candidate, reference):
    """The kind is of the difference, so it is the same both ways.

    Pruning alone on one side is never a finer kind.
    """
    kind = kind_of(candidate, reference)
    assert kind == kind_of(reference, candidate)
    assert (kind == "same") == (candidate == reference)
    if candidate.pruning != reference.pruning:
        assert DEFAULT_RULES[kind] == ""


def test_every_quantization_part_has_a_kind():
    """A new part must say how coarse it is; without a row it would pass for 4-bit."""
    parts = [name for name, part in TABLE.items() if part.kind == "quantization"]
    assert [name for name in parts if name not in QUANTIZATION_KINDS] == []
    assert set(QUANTIZATION_KINDS.values()) <= set(KINDS)


EXACT, TINY, FINE, GOOD, COARSE, GONE = (
    prompts(noisy(db)) for db in (math.inf, 110, 50, 34, 14, 3)
)
CONTROLS = {
    "same": (EXACT, COARSE),
    "assisted-fp32": (EXACT, COARSE),
    "adapter-merged-fp32": (TINY, FINE),
    "fp32": (TINY, FINE),
    "fp16": (FINE, GOOD),
    "bf16": (GOOD, COARSE),
    "parallel": (FINE, GONE),
    "assisted": (GOOD, GONE),
    "adapter-merged": (GOOD, GONE),
    "kv-8-bit": (GOOD, GONE),
    "8-bit": (GOOD, COARSE),
    "4-bit": (COARSE, GONE),
}


@pytest.mark.parametrize("kind", [kind for kind, rule in DEFAULT_RULES.items() if rule])
def test_each_default_rule_accepts_what_it_is_for_and_rejects_what_is_worse(kind):
    """The negative control of every rule: logits with more noise than the kind may have."""
    accepted, rejected = CONTROLS[kind]
    rule = Rule(parse_rule(DEFAULT_RULES[kind]).criteria, kind)
    assert Agreement(accepted, rule=rule).ok, Agreement(accepted, rule=rule).reasons
    assert not Agreement(rejected, rule=rule).ok


@pytest.mark.parametrize(
    "criterion",
    ["containment(k=8, horizon=4)", "perplexity(1.03)", "sqnr(20)", "correlation(0.99)"],
)
def test_each_criterion_rejects_on_its_own(criterion):
    """None of them hides behind another."""
    assert Agreement(GOOD, rule=parse_rule(criterion)).ok
    assert not Agreement(GONE, rule=parse_rule(criterion)).ok


@pytest.mark.parametrize("kind", [kind for kind, rule in DEFAULT_RULES.items() if not rule])
def test_a_kind_without_a_rule_says_what_to_give(kind):
    """Its name, and the claims that take the rule's place."""
    with pytest.raises(
        UsageError,
        match=rf"kind '{kind}' has no default.*a budget of yours\."
        r".*recovery.*>= 0\.95.*accuracy_gate",
    ):
        assert Agreement(GOOD, rule=Rule(kind=kind)).ok


def test_an_empty_rule_says_so():
    """Without a kind there is no advice of its own."""
    with pytest.raises(UsageError, match=r"the agreement rule is empty.*Name one"):
        assert Agreement(GOOD, rule=Rule()).ok


def test_every_number_has_a_source():
    """A row says where its numbers are from, and one without a rule what to give."""
    assert all(
        kind.source and kind.variant and bool(kind.give) is not bool(kind.rule)
        for kind in KINDS.values()
    )


def correlation(rows):
    return float(Agreement(rows, rule=Rule()).logit_correlation)


def test_the_correlation_is_that_of_the_logits():
    """Equal logits and scaled ones give 1, inverted ones -1.

    Noise of the signal's own power gives 1 / sqrt(2).
    """
    assert correlation(EXACT) == pytest.approx(1)
    assert correlation(prompts(scaled(1.3))) == pytest.approx(1)
    assert correlation(prompts(noisy(0))) == pytest.approx(math.sqrt(0.5), abs=0.01)
    assert correlation(prompts(scaled(-1))) == pytest.approx(-1)
    assert correlation(prompts(scaled(0))) == 0


def test_a_scale_that_correlation_forgives_is_seen_by_sqnr():
    """Which is why both are reported."""
    assert Agreement(prompts(scaled(1.3)), rule=parse_rule("correlation(0.999)")).ok
    assert not Agreement(prompts(scaled(1.3)), rule=parse_rule("sqnr(20)")).ok


def test_an_engine_that_does_not_report_the_power_has_no_correlation():
    """Never 0, and never a pass."""
    rows = [replace(row, candidate_signal=None) for row in GOOD]
    with pytest.raises(NotMeasured, match=r"logit_correlation.*does not report"):
        assert Agreement(rows, rule=parse_rule("correlation(0.9)")).ok
