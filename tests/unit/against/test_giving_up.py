"""A comparison that this machine cannot decide ends early, and says so in a sentence."""

from __future__ import annotations

import math
import random

import pytest

from pytest_llmperf.against import blocks
from pytest_llmperf.against.spending import LOOKS, PairCost, Spending, too_noisy
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.core.verdicts.side_by_side import SideBySide


def pairs(n, spread, seed=0):
    """Return a state after `n` pairs of equal versions whose log ratios spread so much."""
    draw = random.Random(seed)
    state = SideBySide(direction="higher")
    return state.with_pairs([(1.0, math.exp(draw.gauss(0, spread))) for _ in range(n)])


def test_the_forecast_is_what_so_many_pairs_of_the_same_spread_show():
    """At the pairs that there are it is the decision's own; with more it comes nearer."""
    alternating = [(1.0, math.exp(0.04 * (-1) ** n)) for n in range(8)]
    few = SideBySide(direction="higher").with_pairs(alternating)
    assert few.look().autocorrelation == 0
    assert few.visible_after(8) == pytest.approx(few.look().smallest_visible)
    many = SideBySide(direction="higher").with_pairs(alternating * 3)
    assert few.visible_after(24) == pytest.approx(many.look().smallest_visible, rel=0.1)
    with pytest.raises(ValueError, match="8 pairs say nothing of 7"):
        few.visible_after(7)


@pytest.mark.parametrize(("spread", "n_at_end"), [(0.25, math.inf), (0.06, 7)])
def test_pairs_are_given_up_where_the_rest_can_show_nothing_of_use(spread, n_at_end):
    text = too_noisy(pairs(6, spread), n_at_end)
    assert text.startswith("given up after 6 pairs: at this noise ")
    assert "5.0 % is to be refuted: this machine is too noisy for this comparison" in text


@pytest.mark.parametrize(("n", "spread", "n_at_end"), [(6, 0.06, 30), (6, 0.01, 6), (5, 0.25, 5)])
def test_pairs_that_may_decide_and_too_few_to_know_go_on(n, spread, n_at_end):
    assert too_noisy(pairs(n, spread), n_at_end) == ""


def test_programs_that_ten_more_pairs_decide_are_rarely_given_up():
    """Equal versions, 6 % from process to process: nearly all are decided by 30 pairs."""
    decided, given_up = 0, 0
    for seed in range(200):
        if pairs(30, 0.06, seed).look().outcome is Outcome.PASS:
            decided += 1
            given_up += any(too_noisy(pairs(n, 0.06, seed), 30) for n in range(6, 30))
    assert decided > 100
    assert given_up <= decided * 0.05


def test_the_pairs_that_fit_are_those_of_the_time_that_is_left():
    spending = Spending(budget_s=60.0)
    for total_s in (12.0, 8.0):
        spending.add(PairCost(sampled_s=1.0, total_s=total_s))
    assert spending.n_at_end == pytest.approx(2 + (LOOKS * 60 - 20) / 8)


def test_the_first_pair_alone_is_no_forecast():
    """It compiles for those after it: 32 s, then 16 s, of which six fit into twice 60 s."""
    spending = Spending(budget_s=60.0)
    spending.add(PairCost(sampled_s=1.0, total_s=32.0))
    assert spending.ended() == ""
    for _ in range(5):
        spending.add(PairCost(sampled_s=1.0, total_s=16.0))
        assert spending.ended() == ""


def test_a_first_pair_of_which_not_even_halves_fit_ends_the_comparison():
    spending = Spending(budget_s=60.0)
    spending.add(PairCost(sampled_s=1.0, total_s=35.0))
    assert "6 pairs need --llmperf-against-budget=105 or more, it is 60" in spending.ended()


def test_two_pairs_that_cost_too_much_end_the_comparison():
    spending = Spending(budget_s=60.0)
    for total_s in (32.0, 31.0):
        spending.add(PairCost(sampled_s=1.0, total_s=total_s))
    assert spending.ended().startswith("a pair takes 31 s, of which its two processes take 30.5 s")
    assert "--llmperf-against-budget=94 or more, it is 60" in spending.ended()


def test_a_comparison_that_is_too_noisy_is_given_up_and_says_so(compared):
    record, (finding,), _, raised = compared("noise=2.0,seed=1", "noise=2.0,seed=2")
    assert (finding.outcome, raised) == (Outcome.UNDECIDED, None)
    assert "this machine is too noisy for this comparison" in finding.detail
    assert len(record.extra["against"]["metrics"]["throughput"]["pairs"]) < 30


def test_the_time_before_the_first_run_of_a_warm_up_belongs_to_the_process(compared, monkeypatch):
    """A first run compiles for seconds that its own times do not show."""
    now_s = [0.0]
    warm_up = blocks.warm_up

    def compile_first(side, goal, progress):
        def started(phase, detail, eta_s):
            now_s[0] += 30.0 if detail.endswith(" 1") else 0.0
            progress(phase, detail, eta_s)

        return warm_up(side, goal, started)

    monkeypatch.setattr(blocks.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(blocks, "warm_up", compile_first)
    record, (finding,), _, _ = compared("seed=1", "seed=2")
    assert record.extra["against"]["metrics"]["throughput"]["processes"]["ready_s"] >= 30.0
    assert "loads included" in finding.detail or "starting took" in finding.detail
