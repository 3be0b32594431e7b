"""Estimates, what is not measurable, and distributions of times."""

from __future__ import annotations

import copy
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.core.metrics.latencies import Latencies
from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable
from pytest_llmperf.errors import NotMeasured, UsageError

SAMPLES = tuple(112.4 + d for d in (-0.6, -0.4, -0.2, 0.0, 0.3, 0.5, 0.7, -0.7, 0.2))


def throughput(samples=SAMPLES, **more):
    return Estimate.of_samples("throughput", tuple(samples), "tok/s", direction="higher", **more)


def memory(value, **more):
    return Estimate.exact("memory.weights", value, "B", direction="lower", **more)


def test_an_estimate_reads_as_value_interval_and_sample_size():
    assert str(throughput()) == "112.4 tok/s [111.7, 113.1] 99 %, n=9"
    assert (
        repr(throughput(subject="bf16"))
        == "<throughput of bf16: 112.4 tok/s [111.7, 113.1] 99 %, n=9>"
    )
    assert str(memory(269e6)) == "269.0 MB"


def test_a_multiple_scales_interval_and_samples_and_remembers_its_factor():
    twice = 2 * throughput(subject="fp32")
    assert (twice.value, twice.low, twice.high) == pytest.approx(
        (224.8, 2 * throughput().low, 2 * throughput().high)
    )
    assert twice.samples == tuple(2 * x for x in SAMPLES)
    assert (twice * 3).factor == 6
    assert twice.title == "2 x throughput of fp32"
    assert float(throughput() / 2) == pytest.approx(56.2)


@pytest.mark.parametrize("factor", [0, -1, math.inf, math.nan])
def test_only_positive_factors_keep_a_direction(factor):
    with pytest.raises(UsageError, match=r"cannot be scaled"):
        throughput() * factor


def test_nan_and_a_value_outside_of_its_interval_are_refused():
    with pytest.raises(UsageError, match=r"NaN"):
        memory(math.nan)
    with pytest.raises(UsageError, match=r"outside"):
        Estimate(name="x", value=1.0, low=2.0, high=3.0, n=1, unit="s")


def test_a_ratio_is_paired_when_both_were_measured_together():
    ours = throughput([2 * x for x in SAMPLES], pair="p", subject="bf16")
    paired, unpaired = (
        ours / throughput(pair="p", subject="fp32"),
        ours / throughput(pair="q", subject="fp32"),
    )
    assert paired.low == pytest.approx(2) == paired.high
    assert unpaired.low < 1.99
    assert unpaired.high > 2.01
    assert (paired.unit, paired.n, paired.against) == ("x", 9, "fp32")


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_ratio_of_exact_values_is_exact(a, b):
    found = memory(a) / memory(b)
    assert found.kind == "exact"
    assert found.value == pytest.approx(a / b) == found.low == found.high


def test_a_ratio_of_percentiles_comes_from_their_intervals():
    slow = Estimate(name="ttft.p95", value=0.2, low=0.18, high=0.22, n=200, unit="s")
    fast = Estimate(name="ttft.p95", value=0.1, low=0.1, high=0.1, n=200, unit="s")
    found = slow / fast
    assert (found.low, found.value, found.high) == pytest.approx((1.8, 2.0, 2.2))


def test_ratios_of_unlike_units_or_zero_are_refused():
    with pytest.raises(UsageError, match=r"in 'tok/s' and memory.weights in 'B'"):
        throughput() / memory(1)
    with pytest.raises(UsageError, match=r"positive values"):
        memory(1) / memory(0)


def test_noisy_quantities_are_never_equal_and_exact_ones_can_be():
    with pytest.raises(UsageError, match=r"never equal"):
        assert throughput() == 112.4
    with pytest.raises(UsageError, match=r"never equal"):
        assert throughput() != throughput()
    assert memory(8) == 8
    assert memory(8) != 9
    assert not (memory(8) == memory(9))  # noqa: SIM201 - __eq__ is what is tested


def test_an_estimate_still_hashes_and_is_unequal_to_other_things():
    one = throughput()
    assert {one: 1}[one] == 1
    assert one != "112.4"
    assert (one == None) is False  # noqa: E711
    assert copy.copy(one).samples == one.samples


USES = {
    "<": lambda x: x < 1,
    ">=": lambda x: x >= 1,
    "reflected": lambda x: 1 <= x,  # noqa: SIM300
    "==": lambda x: x == 1,
    "!=": lambda x: x != 1,
    "== None": lambda x: x == None,  # noqa: E711
    "estimate": lambda x: throughput() >= x,
    "estimate ==": lambda x: memory(1) == x,
    "multiple": lambda x: throughput() >= 1.1 * x,
    "ratio": lambda x: throughput() / x,
    "sum": lambda x: x + 1,
    "negative": lambda x: -x,
    "float": float,
    "round": round,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_is_not_measurable_never_passes_anything(use):
    with pytest.raises(NotMeasured, match=r"energy.per_token could not be measured: no counter"):
        use(NotMeasurable("energy.per_token", "no counter"))


def test_what_is_not_measurable_is_not_false_either():
    with pytest.raises(NotMeasured):
        bool(NotMeasurable("mbu", "no ceilings"))


def test_a_part_of_what_is_not_measurable_has_the_same_reason():
    part = NotMeasurable("ttft", "no token times").p95
    assert repr(part) == "<ttft.p95: not measurable: no token times>"
    assert copy.copy(part).reason == "no token times"
    with pytest.raises(NotMeasured, match=r"ttft.p95"):
        assert part <= 1


@pytest.mark.parametrize(
    "use",
    [u for name, u in USES.items() if "estimate" not in name],
    ids=[n for n in USES if "estimate" not in n],
)
def test_a_distribution_asks_for_a_percentile(use):
    with pytest.raises(UsageError, match=r"compare a percentile, e\.g\. \.p95"):
        use(Latencies("ttft", (0.1, 0.2)))


def test_percentiles_are_those_of_the_samples():
    times = Latencies("ttft", tuple(i / 1000 for i in range(1, 201)), subject="bf16")
    found = {
        name: float(getattr(times, name)) for name in ("p50", "p90", "p95", "p99", "mean", "max")
    }
    assert found == pytest.approx(
        {"p50": 0.1005, "p90": 0.1801, "p95": 0.19005, "p99": 0.19801, "mean": 0.1005, "max": 0.2}
    )
    assert times.p95.name == "ttft.p95"


@pytest.mark.parametrize(("part", "n"), [("p50", 4), ("p90", 20), ("p95", 40), ("p99", 200)])
def test_a_percentile_below_its_samples_says_how_many_are_needed(part, n):
    enough = Latencies("itl", tuple(0.01 + 0.001 * (i % 3) for i in range(n)))
    assert isinstance(getattr(enough, part), Estimate)
    few = Latencies("itl", enough.samples[1:])
    with pytest.raises(NotMeasured, match=rf"{n - 1} samples, percentile \d+ needs at least {n}"):
        assert getattr(few, part) <= 1


def test_no_sample_bounds_the_largest_time_from_above():
    largest = Latencies("latency", (0.1, 0.3, 0.2)).max
    assert (largest.low, largest.high) == (0.3, math.inf)


def test_a_distribution_needs_samples():
    with pytest.raises(ValueError, match=r"no samples"):
        Latencies("ttft", ())


@pytest.mark.parametrize(("direction", "op"), [("higher", ">="), ("lower", "<="), ("none", ">=")])
def test_the_truth_of_an_estimate_is_an_error_that_says_what_to_compare(direction, op):
    """`assert run.throughput` would hold whatever was measured."""
    found = Estimate.exact("throughput", 14.25, "tok/s", direction=direction, subject="bf16")
    with pytest.raises(
        UsageError,
        match=rf"throughput of bf16 is 14.25 tok/s: it is neither true nor false.*{op} 14.2",
    ):
        assert found
    with pytest.raises(UsageError):
        bool(not found)
    assert found is not None
    assert found == 14.25
