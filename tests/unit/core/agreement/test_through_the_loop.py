"""The loop that is measured is judged too, whatever the rule: by its logits, or by its text."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace
from support.compared_prompts import N, prompt

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.agreement.rules import parse_rule
from pytest_llmperf.core.agreement.through_the_loop import DECODE_LIMITS_NATS, decode_limit
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.verdicts.estimate import NotMeasurable

PLAN = LoadPlan(model=ModelRef(name="m", kind="builtin", location="m"))


def looped(kl: float, **changes):
    return [prompt(i, path="generate", reprefill_kl=(kl,) * N, **changes) for i in range(4)]


def agreement(rows, dtype="float32", rule="perplexity(1.01)"):
    limit = decode_limit(PLAN, dtype)
    return Agreement(rows, rule=parse_rule(rule), dtype=dtype, decode_limit=limit)


@pytest.mark.parametrize(("dtype", "limit"), DECODE_LIMITS_NATS.items())
def test_decoding_must_be_what_the_same_model_says_without_a_cache(dtype, limit):
    """Negative control: twice the limit fails every rule, half of it none."""
    right, wrong = agreement(looped(limit / 2), dtype), agreement(looped(limit * 2), dtype)
    assert right.ok
    assert not wrong.ok
    assert wrong.reasons == (
        (
            f"decode against re-prefill of the same model: KL {limit * 2:.3g} nats, "
            f"at most {limit:g} in {dtype}"
        ),
    )
    assert "perplexity(1.01) holds, and the loop does not" in wrong.report()
    assert float(wrong.decode_kl) == pytest.approx(limit * 2)


def test_a_rule_can_give_the_loop_another_limit():
    """The criterion of that name takes the place of the check."""
    assert agreement(looped(0.01), rule="reprefill(0.02)").ok
    assert not agreement(looped(0.03), rule="reprefill(0.02)").ok


@pytest.mark.parametrize("fields", [{"cache": "int8"}, {"quantization": "int8"}], ids=str)
def test_what_may_rightly_differ_has_no_limit(fields):
    """An 8-bit cache gives back other values than went in."""
    assert decode_limit(replace(PLAN, **fields), "bfloat16") is None
    assert decode_limit(replace(PLAN, quantization="nf4"), "bfloat16") is not None
    assert decode_limit(PLAN, "") is None


def unforced(first_divergence, top1=(True,) * N):
    return [
        prompt(
            i,
            unforced="the engine takes no tokens",
            top1=top1,
            first_divergence=first_divergence,
            candidate_rank_in_reference=1,
            reference_rank_in_candidate=1,
        )
        for i in range(4)
    ]


def test_a_loop_that_takes_no_tokens_has_a_floor_for_what_it_decodes_freely():
    """Negative control: the second best token once parts the text, though the logits are right."""
    assert agreement(unforced(None)).ok
    assert agreement(unforced(N - 4)).ok
    wrong = agreement(unforced(1))
    assert not wrong.ok
    assert wrong.reasons == (
        (
            "free-running tokens: 0.0312 of them agree before the first difference, "
            "at least 0.7 by the logits without a cache"
        ),
    )


def test_the_floor_goes_by_what_the_logits_say():
    """A coarse model parts early in both, and that is not the loop's fault."""
    early = (True, True, False, *(True,) * (N - 3))
    assert agreement(unforced(2, early)).ok
    assert not agreement(unforced(0, early)).ok


def test_the_report_says_what_the_logits_went_through():
    """One line each: through the loop, not through it and why, or not looked at."""
    assert "through the loop that is measured: generate" in agreement(looped(0.0)).report()
    text = agreement(unforced(None)).report()
    assert "not through the loop that is measured: the engine takes no tokens" in text
    old = Agreement([prompt()], rule=parse_rule("exact"))
    assert old.ok
    assert "how the engine decodes was not looked at" in old.report()
    assert isinstance(old.decode_kl, NotMeasurable)


def ended(error: float):
    ends = {"reference_end_logprob": (-5.0,) * N, "candidate_end_logprob": (-5.0 + error,) * N}
    return [prompt(i, **ends) for i in range(4)]


def test_the_probability_of_the_end_is_a_criterion_of_its_own():
    """Negative control: an end 3 nats too likely."""
    assert agreement(ended(0.1), rule="end(0.2)").ok
    assert not agreement(ended(3.0), rule="end(0.2)").ok
    assert float(agreement(ended(-5.0)).end_mae) == pytest.approx(5.0)


def test_parts_have_figures_of_their_own():
    """A part that is broken shows, and how far into a text it reaches."""
    rows = [
        prompt(0, part="chat"),
        prompt(1, part="scripts", kl=(2.0,) * N, noise=500.0),
        prompt(2, part="long", n_prompt_tokens=1100, kl=(0.5,) * N),
    ]
    seen = agreement(rows)
    assert {name: float(part.kl) for name, part in seen.parts.items()} == {
        "chat": 0.0,
        "scripts": 2.0,
        "long": 0.5,
    }
    assert seen.reach == 1100 + N - 1
    assert "up to position 1131" in seen.report()
    assert "scripts            32 tokens of 1 prompts, up to position 41" in seen.report()
    assert seen.summary()["parts"]["scripts"]["kl"] == 2.0
    worst = agreement(rows, rule="worst_kl(1)")
    assert worst.reasons == ("worst_kl(1): 2 nats in prompt 1 (scripts)",)


def rounded(db: float, kl: float, **changes):
    noise = 1000 / 10 ** (db / 10)
    floor = {"rounding_noise": 10**-3.3, "rounding_kl": 0.001}
    return [prompt(i, noise=noise, kl=(kl,) * N, **floor, **changes) for i in range(4)]


@pytest.mark.parametrize(
    ("rows", "dtype", "holds"),
    [
        (rounded(32, 0.0015), "bfloat16", True),
        (rounded(28, 0.0015), "bfloat16", False),
        (rounded(32, 0.004), "bfloat16", False),
        (rounded(32, 0.0015), "float16", False),
        (rounded(50, 0.00002), "float16", True),
        (rounded(32, 0.0015)[:3] + rounded(32, 0.02)[3:], "bfloat16", False),
    ],
)
def test_the_noise_of_a_dtype_is_that_measured_on_this_model(rows, dtype, holds):
    """33 dB and 0.001 nats of bf16 here: 2.5 times that, and a 64th of it in fp16."""
    ours = agreement(rows, dtype, rule="dtype_noise(2.5)")
    assert bool(ours.ok) is holds, ours.reasons


def test_without_a_measured_noise_the_figures_of_the_rule_hold():
    """A reference of another engine has none."""
    rule = "dtype_noise(margin=2.5, kl=0.003, sqnr=30)"
    noise = 1000 / 10**2.9
    assert agreement([prompt(noise=1000 / 10**3.1, kl=(0.002,) * N)], "bfloat16", rule).ok
    assert not agreement([prompt(noise=noise, kl=(0.002,) * N)], "bfloat16", rule).ok
    assert not agreement([prompt(kl=(0.004,) * N)], "bfloat16", rule).ok


def test_a_perplexity_that_must_not_change_has_two_sides():
    """Negative control: logits at another temperature make the reference's text likelier."""
    better = [prompt(candidate_logprob=(-0.9,) * N)]
    assert agreement(better, rule="perplexity(1.01)").ok
    assert not agreement(better, rule="perplexity(1.01, two_sided)").ok
    assert str(parse_rule("perplexity(1.01, two_sided)")) == "perplexity(1.01, two_sided)"
    assert str(parse_rule("perplexity(1.01)")) == "perplexity(1.01)"


def test_tokens_that_are_beyond_all_chance_break_the_perplexity_and_not_the_program():
    """One token for ever has log-probabilities of -10,000, and a standard error to match."""
    far = [prompt(), prompt(candidate_logprob=(-10_000.0,) * N)]
    held = agreement(far, rule="perplexity(1.01, two_sided)")
    assert not held.ok
    assert "at most 2x either way on so many tokens" in " ".join(held.reasons)


def test_kl_and_prefix_are_criteria_by_name():
    """Each is broken by what it is for."""
    assert not agreement([prompt(kl=(0.01,) * N)], rule="kl(0.005)").ok
    assert agreement([prompt(kl=(0.004,) * N)], rule="kl(0.005)").ok
    parted = [prompt(first_divergence=8)]
    assert not agreement(parted, rule="prefix(0.3)").ok
    assert agreement(parted, rule="prefix(0.2)").ok


def test_logits_that_are_not_numbers_have_no_shares():
    """NaN on both sides agrees with itself, and says nothing."""
    blind = agreement([prompt(kl=(math.nan,) * N)])
    for name in ("top1", "top5", "prefix_match", "kl"):
        assert isinstance(getattr(blind, name), NotMeasurable)
    assert isinstance(blind.containment(), NotMeasurable)
    assert not blind.ok
