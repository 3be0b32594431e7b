"""Intervals: checked against published tables, and by simulating how often they cover the truth."""

from __future__ import annotations

import math
import random
import statistics
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.distributions import (
    binomial_cdf,
    binomial_quantile,
    t_cdf,
    t_quantile,
)

positive = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("p", "freedom", "tabulated"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.3027),
        (0.995, 3, 5.8409),
        (0.995, 5, 4.0321),
        (0.995, 7, 3.4995),
        (0.995, 30, 2.7500),
        (0.999, 10, 4.1437),
        (0.995, 1e7, 2.5758),
        (0.025, 4, -2.7764),
        (0.5, 9, 0.0),
    ],
)
def test_t_quantiles_are_those_of_the_tables(p, freedom, tabulated):
    assert t_quantile(p, freedom) == pytest.approx(tabulated, abs=6e-5)


@given(st.floats(0.001, 0.999), st.floats(1, 500))
def test_t_quantile_inverts_the_distribution(p, freedom):
    assert t_cdf(t_quantile(p, freedom), freedom) == pytest.approx(p, abs=1e-9)


@given(st.integers(1, 80), st.floats(0.02, 0.98), st.integers(-1, 81))
def test_binomial_cdf_is_the_sum_of_its_terms(n, p, k):
    terms = math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(min(k, n) + 1))
    assert binomial_cdf(k, n, p) == pytest.approx(terms, abs=1e-9)


@given(st.integers(1, 200), st.floats(0.02, 0.98), st.floats(0.001, 0.999))
def test_binomial_quantile_is_the_first_above_the_tail(n, p, tail):
    k = binomial_quantile(n, p, tail)
    assert binomial_cdf(k - 1, n, p) <= tail
    assert k == n or binomial_cdf(k, n, p) > tail


@given(positive, st.floats(0, 1))
def test_a_quantile_lies_inside_the_sample(xs, q):
    assert min(xs) <= stats.quantile(xs, q) <= max(xs)


def test_quantiles_interpolate():
    assert statistics.median([3.0, 1.0, 2.0]) == 2.0
    assert statistics.median([4.0, 1.0, 2.0, 3.0]) == 2.5
    assert stats.quantile([0.0, 10.0, 20.0, 30.0], 0.9) == pytest.approx(27.0)
    assert stats.quantile([1.0, math.inf, math.inf], 0.75) == math.inf


def test_no_sample_has_no_median():
    with pytest.raises(ValueError, match=r"no samples"):
        stats.quantile([], 0.5)
    with pytest.raises(ValueError, match=r"empty"):
        statistics.median([])


@pytest.mark.parametrize(("q", "n"), [(0.5, 4), (0.9, 20), (0.95, 40), (0.99, 200)])
def test_a_percentile_needs_two_samples_beyond_it(q, n):
    assert stats.min_samples(q) == n


@pytest.mark.parametrize(("q", "n"), [(0.5, 8), (0.95, 104)])
def test_both_ends_of_a_quantile_interval_appear_at_bounding_samples(q, n):
    assert stats.bounding_samples(q) == n
    assert stats.quantile_interval([1.0] * (n - 1), q)[1] == math.inf
    assert stats.quantile_interval([1.0] * n, q)[1] == 1.0


@pytest.mark.parametrize(("q", "r"), [(0.9, 0.7), (0.95, 0.3), (0.95, 0.8)])
def test_correlated_samples_need_more_for_both_ends(q, r):
    """As many as are said bound the percentile, with room for the estimate of r.

    A third fewer do not.
    """
    draw, xs = random.Random(7), [0.0]
    while len(xs) < 20_000:
        xs.append(r * xs[-1] + draw.gauss(0, 1))
    needed = stats.samples_for_both_ends(xs, q)
    assert needed == pytest.approx(stats.bounding_samples(q) * (1 + r) / (1 - r), rel=0.1)
    assert stats.quantile_interval(xs[: round(1.35 * needed)], q)[1] < math.inf
    assert stats.quantile_interval(xs[: round(0.65 * needed)], q)[1] == math.inf


def test_a_median_interval_needs_eight_samples_and_then_is_the_range():
    # Negative autocorrelation: worth all eight.
    alternating = [1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0]
    assert stats.median_interval(alternating[:7]) is None
    assert stats.median_interval(alternating) == (1.0, 8.0)


def test_autocorrelation_of_known_series():
    assert stats.lag1_autocorrelation([1.0, -1.0, 1.0, -1.0]) == pytest.approx(-0.75)
    assert stats.lag1_autocorrelation([5.0, 5.0, 5.0]) == 0.0
    assert stats.lag1_autocorrelation([float(i) for i in range(100)]) > 0.9


@given(positive)
def test_effective_n_is_between_two_and_n(xs):
    n = len(xs)
    assert min(2, n) <= stats.effective_n(xs) <= n


def test_a_slow_drift_is_worth_few_samples():
    assert stats.effective_n([float(i) for i in range(40)]) < 4
    assert stats.effective_n([1.0, 2.0] * 20) == 40


@given(positive)
def test_the_center_interval_holds_the_median(xs):
    low, high = stats.center_interval(xs)
    assert low <= statistics.median(xs) <= high


def test_equal_samples_leave_no_doubt_and_three_leave_all():
    assert stats.center_interval([0.1] * 4) == (0.1, 0.1)
    assert stats.center_interval([0.1] * 3) == (0.0, math.inf)
    assert stats.log_ratio_interval([2.0] * 4, [1.0] * 4, paired=True).half_width == 0.0
    assert stats.log_ratio_interval([2.0] * 3, [1.0] * 3, paired=True).half_width == math.inf


def test_a_ratio_needs_positive_values_and_equal_lengths():
    with pytest.raises(ValueError, match=r"positive"):
        stats.log_ratio_interval([1.0, 0.0], [1.0, 1.0], paired=True)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        stats.log_ratio_interval([1.0, 2.0], [1.0, 1.0, 1.0], paired=True)


def _noise(rng: random.Random, n: int, kind: str, rho: float) -> list[float]:
    """n values with median and mean 0 in log units, spread 2 %."""
    z = rng.gauss(0, 1)
    out = []
    for _ in range(n):
        out.append(z)
        z = rho * z + math.sqrt(1 - rho * rho) * rng.gauss(0, 1)
    if kind == "skewed":  # the difference of two series whose noise only slows them down
        slow = [-math.log(1 - NormalDist().cdf(v)) for v in out]
        return [0.02 * (v + math.log(1 - rng.random())) for v in slow]
    return [0.02 * v for v in out]


@pytest.mark.parametrize("n", [4, 6, 12, 40])
@pytest.mark.parametrize(
    ("kind", "rho", "least"), [("normal", 0.0, 0.98), ("skewed", 0.0, 0.98), ("normal", 0.5, 0.93)]
)
def test_paired_ratios_cover_the_truth(n, kind, rho, least):
    """99 % nominal.

    Independent pairs reach it, autocorrelated ones come near it (0.87 to 0.90 without the effective
    n).
    """
    rng, runs, hits = random.Random(n), 500, 0
    for _ in range(runs):
        # Common to both sides of a pair.
        shared = [math.exp(0.1 * rng.gauss(0, 1)) for _ in range(n)]
        a = [1.1 * c * math.exp(e) for c, e in zip(shared, _noise(rng, n, kind, rho), strict=True)]
        found = stats.log_ratio_interval(a, shared, paired=True)
        hits += found.low <= math.log(1.1) <= found.high
    assert hits / runs >= least


def test_autocorrelation_left_out_would_be_seen_by_the_coverage_test(monkeypatch):
    """Negative control: with the naive n the same simulation falls below its bar."""
    monkeypatch.setattr(stats, "_believed_autocorrelation", lambda _: 0.0)
    with pytest.raises(AssertionError):
        test_paired_ratios_cover_the_truth(12, "normal", 0.5, 0.93)


@pytest.mark.parametrize("n", [8, 12, 30])
def test_center_intervals_cover_a_skewed_median(n):
    """Run times are skewed to the right; order statistics do not mind."""
    rng, runs, hits = random.Random(n), 600, 0
    truth = 1 + 0.03 * math.log(2)
    for _ in range(runs):
        low, high = stats.center_interval([1 + 0.03 * rng.expovariate(1) for _ in range(n)])
        hits += low <= truth <= high
    assert hits / runs >= 0.97


def test_welch_covers_unequal_spreads():
    rng, runs, hits = random.Random(5), 500, 0
    for _ in range(runs):
        a = [math.exp(0.01 * rng.gauss(0, 1)) for _ in range(8)]
        b = [math.exp(0.04 * rng.gauss(0, 1)) for _ in range(15)]
        found = stats.log_ratio_interval(a, b, paired=False)
        hits += found.low <= 0 <= found.high
    assert hits / runs >= 0.98


def test_pairing_removes_what_both_sides_share():
    rng = random.Random(1)
    b = [math.exp(0.2 * rng.gauss(0, 1)) for _ in range(20)]
    a = [1.1 * x * math.exp(0.005 * rng.gauss(0, 1)) for x in b]
    paired = stats.log_ratio_interval(a, b, paired=True)
    unpaired = stats.log_ratio_interval(a, b, paired=False)
    assert paired.half_width < unpaired.half_width / 10


def test_bootstrap_covers_the_mean_of_few_rows():
    rng, runs, hits = random.Random(7), 200, 0
    for seed in range(runs):
        rows = [rng.gauss(5, 1) for _ in range(12)]
        low, high = stats.bootstrap_interval(rows, statistics.fmean, seed=seed, resamples=300)
        hits += low <= 5 <= high
    assert hits / runs >= 0.95


def test_bootstrap_is_repeatable_and_one_row_bounds_nothing():
    rows = [1.0, 2.0, 4.0, 8.0]
    assert stats.bootstrap_interval(rows, statistics.fmean, seed=3) == stats.bootstrap_interval(
        rows, statistics.fmean, seed=3
    )
    assert stats.bootstrap_interval([1.0], statistics.fmean) == (-math.inf, math.inf)


def test_samples_needed_grows_with_the_square_of_the_gap():
    assert stats.samples_needed(10, 0.02, 0.01) == 30
    assert stats.samples_needed(10, 0.02, 0.0) is None
    assert stats.samples_needed(10, 0.02, 1e-6) is None
    assert stats.samples_needed(2, math.inf, 0.01) == 2
    assert stats.samples_needed(40, math.inf, 0.01, at_least=104) == 64


@given(st.floats(0, 1))
def test_the_smallest_visible_change_is_at_least_the_half_width(half):
    assert stats.smallest_visible_change(half) >= half
