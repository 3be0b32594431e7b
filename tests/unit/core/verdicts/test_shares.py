"""Intervals of shares near 1: exact ones, their design effect, and their coverage."""

from __future__ import annotations

import pytest
import simulated
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.core.verdicts.distributions import beta_quantile
from pytest_llmperf.core.verdicts.shares import effective_tokens, share_interval


@pytest.mark.parametrize(
    ("p", "a", "b", "tabulated"), [(0.5, 1, 1, 0.5), (0.05, 2, 1, 0.2236), (0.975, 3, 5, 0.7096)]
)
def test_quantiles_of_the_beta_distribution(p, a, b, tabulated):
    """By hand where the distribution is a power; from tables else."""
    assert beta_quantile(p, a, b) == pytest.approx(tabulated, abs=2e-4)


def test_prompts_of_one_token_have_the_interval_of_clopper_and_pearson():
    """9 of 10 at 95 %: 0.5550 to 0.9975 in the published table; a tenth wider for few prompts."""
    low, high = share_interval([1] * 9 + [0], [1] * 10, confidence=0.95)
    assert low == pytest.approx(0.5550, abs=0.05)
    assert high == pytest.approx(0.9975, abs=0.001)


@given(
    prompts=st.integers(2, 30), tokens=st.integers(1, 64), confidence=st.sampled_from([0.95, 0.99])
)
def test_all_alike_is_never_narrower_than_the_rule_of_three(prompts, tokens, confidence):
    """Its exact form is 5 % ** (1 / n). None of n mirrors all of n."""
    low, high = share_interval([tokens] * prompts, [tokens] * prompts, confidence)
    assert high == 1
    assert low <= 0.05 ** (1 / (prompts * tokens))
    nothing = share_interval([0] * prompts, [tokens] * prompts, confidence)
    assert nothing == (0.0, pytest.approx(1 - low))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(40, 60)), min_size=2, max_size=30))
def test_an_interval_holds_its_share(prompts):
    """Whatever the prompts are."""
    counts, sizes = zip(*prompts, strict=True)
    low, high = share_interval(counts, sizes)
    assert 0 <= low <= sum(counts) / sum(sizes) <= high <= 1
    assert effective_tokens(counts, sizes) <= sum(sizes)


def test_failures_that_come_together_say_less():
    """16 of 512 tokens in one prompt, or one in each of 16: the first is wider by far."""
    together = share_interval([16, *[32] * 15], [32] * 16)
    apart = share_interval([31] * 16, [32] * 16)
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])


def test_one_prompt_bounds_nothing():
    """Its tokens may all be of one kind."""
    assert share_interval([32], [32]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("counts", "sizes"), [([], []), ([33, 1], [32, 32]), ([0, 0], [32, 0]), ([-1, 2], [4, 4])]
)
def test_what_is_no_share_is_an_error(counts, sizes):
    """More than there are, prompts without tokens, nothing at all."""
    with pytest.raises(ValueError, match="are no shares of"):
        share_interval(counts, sizes)


@pytest.mark.parametrize("prompts", [8, 16, 24])
@pytest.mark.parametrize("correlation", [0.0, 0.05, 0.2])
def test_simulated_coverage_near_1(prompts, correlation):
    """A share of 0.998, tokens of one prompt independent or alike: 98 % and more of 400."""
    assert simulated.covered_shares(0.998, prompts, correlation, 400) >= 392


def test_a_bootstrap_of_equal_prompts_has_no_width():
    """Negative control: the interval that it was before says [1, 1] of most sets of 8 prompts."""
    assert simulated.bootstrapped_share([32] * 8, [32] * 8) == (1.0, 1.0)
    covered = simulated.covered_shares(0.998, 8, 0.0, 400, interval=simulated.bootstrapped_share)
    assert covered < 0.6 * 400
