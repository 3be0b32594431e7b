"""Intervals of an agreement: what a verdict says of its own, and shares of prompts that agree."""

from __future__ import annotations

from msgspec.structs import replace
from support.compared_prompts import N, alike, prompt

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.rules import parse_rule
from pytest_llmperf.core.verdicts.judge import Outcome, claims


def agreement(rows, rule="exact"):
    return Agreement(rows, rule=parse_rule(rule))


def near(i: int) -> PromptComparison:
    """A candidate whose perplexity is 1 % worse on average, and differs from prompt to prompt."""
    return replace(alike(i), candidate_logprob=(-1.0 - 0.01 - 0.01 * (i % 3 - 1),) * N)


def test_a_verdict_gives_its_interval_and_warns_where_that_holds_the_limit():
    """It is decided on these prompts, whichever side of the limit they are on."""
    rows = tuple(map(near, range(12)))
    for limit, outcome in ((1.012, Outcome.PASS), (1.008, Outcome.FAIL)):
        finding = agreement(rows, f"perplexity({limit:g})")._finding()
        assert finding.outcome is outcome
        assert f"perplexity({limit:g}): 1.010x [1.00" in finding.detail
        assert finding.caution == (
            f"perplexity({limit:g}) is decided on these 12 prompts: its interval holds the limit, "
            "so that other prompts may decide otherwise"
        )
    clear = agreement(rows, "containment(k=5, horizon=32)+perplexity(1.03)+sqnr(40)")._finding()
    assert (clear.outcome, clear.caution) == (Outcome.PASS, "")
    assert "sqnr(40): 45.00 dB" in clear.detail


def test_a_share_of_equal_prompts_is_not_known_exactly():
    """All of 384 tokens agree: at least 96 % do, and 99.9 % cannot be claimed of them."""
    found = agreement([prompt(i) for i in range(12)])
    assert (float(found.top1), found.top1.high) == (1.0, 1.0)
    assert 0.96 < found.top1.low < 1 - 3 / 384
    assert found.top5.low == found.top1.low
    with claims():
        assert (found.top1 >= 0.95).outcome is Outcome.PASS
        assert (found.top1 >= 0.999).outcome is Outcome.UNDECIDED
    assert 0 < found.containment().low < 1 - 3 / 12
