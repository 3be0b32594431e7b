"""Agreement: quantities computed by hand, and every rule with an input that it must reject."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.compared_prompts import N, alike, broken, prompt

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.agreement.comparison import TopToken, WorstPosition
from pytest_llmperf.core.agreement.rules import (
    DEFAULT_RULES,
    Rule,
    default_rule,
    kind_of,
    parse_rule,
)
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.verdicts.judge import Outcome, claims
from pytest_llmperf.errors import NotMeasured, UsageError

FP32 = LoadPlan(
    model=ModelRef(name="m", kind="builtin", location="m"), weights_dtype="float32", strategy="fp32"
)
FP16 = replace(FP32, weights_dtype="float16", strategy="fp16")
BF16 = replace(FP32, weights_dtype="bfloat16", strategy="bf16")


ALIKE = tuple(map(alike, range(12)))
BROKEN = tuple(map(broken, range(12)))
SELF = tuple(prompt(i) for i in range(12))


def agreement(rows, rule="exact", **more):
    return Agreement(rows, rule=parse_rule(rule) if isinstance(rule, str) else rule, **more)


def test_the_quantities_are_those_computed_by_hand():
    """Two prompts have 2 and 6 positions: shares are over the 8, not the mean of two means."""
    short = prompt(
        0,
        top1=(True, False),
        top5=(True, True),
        kl=(0.1, 0.3),
        reference_logprob=(-1.0, -2.0),
        candidate_logprob=(-1.5, -1.9),
        signal=90.0,
        noise=1.0,
        n_free=4,
        first_divergence=1,
    )
    long = prompt(
        1,
        top1=(True,) * 6,
        top5=(True,) * 5 + (False,),
        kl=(0.0,) * 6,
        reference_logprob=(-1.0,) * 6,
        candidate_logprob=(-1.0,) * 6,
        signal=110.0,
        noise=1.0,
    )
    found = agreement([short, long])
    assert found.n_tokens == 8
    assert float(found.top1) == pytest.approx(7 / 8)
    assert float(found.top5) == pytest.approx(7 / 8)
    assert float(found.kl) == pytest.approx(0.4 / 8)
    assert float(found.perplexity_ratio) == pytest.approx(math.exp(0.4 / 8))
    assert float(found.logprob_mae) == pytest.approx(0.6 / 8)
    assert float(found.prefix_match) == pytest.approx((1 / 4 + 1) / 2)
    assert float(found.sqnr_db) == pytest.approx(20.0)
    assert float(found.containment(k=5, horizon=32)) == pytest.approx(0.5)
    assert found.worst[0].index == 0


def test_intervals_are_over_prompts_and_hold_their_value():
    found = agreement(ALIKE + BROKEN).top1
    assert found.n == 24
    assert found.low < float(found) < found.high
    assert found.low < 0.4
    assert found >= 0.2


def test_nothing_compared_is_an_error():
    for rows in (
        (),
        (prompt(top1=(), top5=(), kl=(), reference_logprob=(), candidate_logprob=()),),
    ):
        with pytest.raises(UsageError, match=r"compared 0 tokens"):
            agreement(rows)


def test_sequences_of_unlike_lengths_are_an_error():
    with pytest.raises(UsageError, match=r"prompt 3: its sequences differ in length"):
        agreement([prompt(3, top5=(True,))])


RULES = {
    "exact": (SELF, ALIKE, "tokens differ in 3 of 12 prompts, first at position 20"),
    "containment(k=5, horizon=32)": (
        ALIKE,
        BROKEN,
        r"in 12 of 12 .* outside of the other's top 5 \(prompt 0, position 1\)",
    ),
    "perplexity(1.01)": (ALIKE, BROKEN, r"perplexity\(1.01\): 1.649x"),
    "sqnr(40)": (ALIKE, BROKEN, r"sqnr\(40\): 5.0 dB"),
    "logits(0.1)": (ALIKE, BROKEN, "the largest error is 6"),
    "containment(k=5, horizon=32)+perplexity(1.01)+sqnr(40)": (
        ALIKE,
        BROKEN,
        r"containment.*perplexity.*sqnr",
    ),
}


@pytest.mark.parametrize(
    ("rule", "accepted", "rejected", "why"), [(r, *rest) for r, rest in RULES.items()], ids=RULES
)
def test_each_rule_accepts_the_like_and_rejects_the_broken(rule, accepted, rejected, why):
    good, bad = agreement(accepted, rule), agreement(rejected, rule)
    assert good.ok
    assert good.reasons == ()
    assert not bad.ok
    assert bad.ok.outcome is Outcome.FAIL
    assert re.search(why, "; ".join(bad.reasons))


def test_the_noise_floor_rule_holds_a_candidate_against_the_reference_itself():
    floor = tuple(replace(row, kl=(1e-6,) * N, noise=1000 / 10**6) for row in SELF)
    near = tuple(replace(row, kl=(1.5e-6,) * N, noise=1.5 * 1000 / 10**6) for row in SELF)
    assert agreement(near, "noise_floor(2)", noise_floor=floor).ok
    assert not agreement(near, "noise_floor(1.2)", noise_floor=floor).ok
    assert not agreement(ALIKE, "noise_floor(2)", noise_floor=floor).ok
    assert parse_rule("noise_floor(2)").needs_noise_floor
    assert not parse_rule("exact").needs_noise_floor


def test_a_reference_without_any_noise_still_allows_rounding():
    rounding = tuple(replace(row, kl=(1e-9,) * N, noise=1000 / 10**12.5) for row in SELF)
    assert agreement(rounding, "noise_floor(2)", noise_floor=SELF).ok
    assert not agreement(ALIKE, "noise_floor(2)", noise_floor=SELF).ok


def test_a_noise_floor_rule_without_its_floor_is_an_error():
    with pytest.raises(UsageError, match=r"none was given"):
        assert agreement(SELF, "noise_floor(2)").ok


@pytest.mark.parametrize(
    ("divergence", "ours", "theirs", "contained"),
    [
        (None, None, None, True),
        (3, 4, 4, True),
        (3, 5, 0, False),
        (3, 0, 5, False),
        (32, 99, 99, True),
        (31, 99, 99, False),
        (3, None, 0, False),
    ],
)
def test_containment_looks_at_both_orders_and_only_before_the_horizon(
    divergence, ours, theirs, contained
):
    row = prompt(
        first_divergence=divergence,
        candidate_rank_in_reference=ours,
        reference_rank_in_candidate=theirs,
    )
    assert row.contained(k=5, horizon=32) is contained


@given(st.floats(0, 5))
def test_a_better_perplexity_is_never_a_failure(gain):
    better = [prompt(candidate_logprob=(-1.0 + gain,) * N)]
    assert agreement(better, "perplexity(1.01)").ok


@pytest.mark.parametrize("field", ["kl", "candidate_logprob", "noise", "max_abs_logit_error"])
def test_logits_that_are_not_finite_fail_every_rule_and_are_not_measurable(field):
    value = math.nan if field in ("noise", "max_abs_logit_error") else (math.nan,) * N
    found = agreement([*SELF, prompt(99, **{field: value})], "sqnr(1)")
    assert found.reasons == ("logits are not finite in 1 of 13 prompts",)
    assert not found.ok
    assert found.worst[0].index == 99
    with pytest.raises(NotMeasured, match=r"not finite in 1 of 13"):
        assert found.kl <= 1
    assert "not finite" in found.report()


def test_the_verdict_is_kept_once_among_the_claims():
    with claims() as kept:
        found = agreement(BROKEN, "sqnr(20)", subject="bf16")
        assert not found.ok
        assert not found.ok
    assert len(kept) == 1
    assert kept[0].text == "agreement of bf16: sqnr(20) does not hold: sqnr(20): 5.0 dB"
    assert kept[0].detail == (
        "compared 384 tokens of 12 prompts, up to position 41; "
        "sqnr(20): 5.000 dB [5.000, 5.000] 99 %, n=12"
    )
    assert kept[0].caution == ""


def test_a_baseline_compared_with_itself_says_so():
    found = agreement(SELF, same_model=True)
    assert found.report().startswith("compared 384 tokens of 12 prompts, compared with itself")
    assert "compared with itself" in repr(found)
    assert found.summary()["itself"] is True
    assert agreement(SELF).summary()["itself"] is False


def test_the_report_shows_the_worst_position():
    worst = WorstPosition(
        position=7,
        reference_top5=(TopToken(5, " Paris", 12.0), TopToken(6, " Rome", 9.0)),
        candidate_top5=(TopToken(6, " Rome", 11.5), TopToken(5, " Paris", 10.0)),
        kl=0.8,
    )
    text = agreement([*SELF, replace(broken(12), worst=worst)], "sqnr(20)").report()
    assert "prompt 12 'prompt 12': texts differ from token 1 of 32" in text
    assert "position 7: KL 0.800 nats, reference ' Paris', candidate ' Rome', logit gap 1.5" in text
    assert "reference ' Paris' 12.00  ' Rome' 9.00" in text
    assert "candidate ' Rome' 11.50  ' Paris' 10.00" in text


def test_the_summary_is_plain_and_holds_values_and_verdict():
    found = agreement(BROKEN, "sqnr(20)").summary()
    assert found["top1"]["value"] == pytest.approx(1 / 32)
    assert (found["ok"], found["rule"], found["n_tokens"]) == (False, "sqnr(20)", 384)
    assert found["worst"][0]["first_divergence"] == 1


def test_a_variant_without_a_default_rule_must_be_given_one():
    for rule in (default_rule(replace(BF16, options=(("agreement", "pruned"),)), FP32), Rule()):
        found = agreement(SELF, rule)
        with pytest.raises(UsageError, match=r"its loss is a budget of yours\. Name one"):
            assert found.ok
        assert found.summary()["ok"] is None


@pytest.mark.parametrize(
    ("candidate", "reference", "kind"),
    [
        (FP32, FP32, "same"),
        (replace(FP32, cache="static"), FP32, "fp32"),
        (FP16, FP32, "fp16"),
        (BF16, FP32, "bf16"),
        (FP16, BF16, "bf16"),
        (replace(FP32, autocast_dtype="float16"), FP32, "fp16"),
        (replace(FP32, autocast_dtype="bfloat16"), FP32, "bf16"),
        (replace(FP32, weights_dtype="auto"), FP32, "bf16"),
        (replace(BF16, ranks=2), BF16, "parallel"),
        (replace(BF16, ranks=2), FP32, "bf16"),
        (replace(BF16, options=(("agreement", "8-bit"),)), FP32, "8-bit"),
    ],
)
def test_the_default_rule_follows_the_kind_of_variant(candidate, reference, kind):
    assert kind_of(candidate, reference) == kind
    assert str(default_rule(candidate, reference)) == (DEFAULT_RULES[kind] or "none")


def test_a_kind_that_has_no_row_is_an_error():
    with pytest.raises(
        UsageError,
        match=r"kind of variant '3-bit' has no rule\. Did you mean '8-bit'\?|Kinds: same",
    ):
        default_rule(replace(BF16, options=(("agreement", "3-bit"),)), FP32)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_default_rules_accept_reduced_precision_and_reject_a_broken_model(kind):
    rule = parse_rule(DEFAULT_RULES[kind])
    assert agreement(ALIKE, rule).ok
    assert not agreement(BROKEN, rule).ok


@pytest.mark.parametrize("text", [text for text in DEFAULT_RULES.values() if text])
def test_a_rule_reads_as_it_was_written(text):
    assert str(parse_rule(text)) == text


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("containment", "containment(k=5, horizon=32)"),
        ("containment(8)", "containment(k=8, horizon=32)"),
        (
            "containment( horizon = 4, k = 8 ) + perplexity( limit=1.03 )",
            "containment(k=8, horizon=4)+perplexity(1.03)",
        ),
    ],
)
def test_rules_can_be_written_shorter(written, meant):
    assert parse_rule(written) == parse_rule(meant)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("perplexety(1.01)", r"'perplexety\(1\.01\)' is not known\. Did you mean 'perplexity'\?"),
        ("", r"criterion '' is not known"),
        ("exact+", r"criterion '' is not known"),
        (
            "perplexity",
            (
                r"limit of perplexity is missing, a positive number is needed\. "
                r"It reads perplexity\(limit, two_sided\)"
            ),
        ),
        ("perplexity(abc)", r"limit of perplexity is 'abc'"),
        ("perplexity(nan)", r"limit of perplexity is 'nan'"),
        ("containment(k=0)", r"k of containment is '0', a whole number of at least 1"),
        ("containment(k=2.5)", r"k of containment is '2\.5', a whole number"),
        ("containment(depth=2)", r"containment does not take 'depth=2'"),
        ("exact(3)", r"exact does not take '3'\. It reads exact\."),
        ("sqnr(20)+sqnr(40)", r"holds 'sqnr' twice"),
        ("sqnr(20", r"criterion 'sqnr\(20' is not known"),
    ],
)
def test_a_rule_that_cannot_be_read_says_what_could(text, message):
    with pytest.raises(UsageError, match=message):
        parse_rule(text)
