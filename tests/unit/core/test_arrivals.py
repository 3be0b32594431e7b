"""When requests are due, what a load is refused for, and the search for the highest rate."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.core.arrivals import PATTERNS, offsets_s, rescaled
from pytest_llmperf.core.metrics.rate_search import Probe, RateSearch, next_rate
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import Serve, Slo, Traffic, describe_serve


def gaps(pattern, rate=10.0, n=20_000, **more):
    due = offsets_s(pattern, rate, requests=n + 1, duration_s=None, **more)
    return [b - a for a, b in pairwise(due)]


def test_constant_gaps_are_equal():
    """One over the rate, from 0 on."""
    assert offsets_s("constant", 4.0, requests=5, duration_s=None) == (0, 0.25, 0.5, 0.75, 1.0)
    assert offsets_s("constant", 4.0, requests=None, duration_s=1.0) == (0, 0.25, 0.5, 0.75)


@pytest.mark.parametrize(("pattern", "shape"), [("poisson", 1.0), ("gamma", 0.25), ("gamma", 4.0)])
def test_random_gaps_have_the_mean_and_spread_of_their_distribution(pattern, shape):
    """Mean 1/rate and coefficient of variation 1/sqrt(shape), within 5 % over 20,000 gaps."""
    found = gaps(pattern, burstiness=shape)
    assert statistics.fmean(found) == pytest.approx(0.1, rel=0.05)
    assert statistics.stdev(found) / statistics.fmean(found) == pytest.approx(shape**-0.5, rel=0.05)


@given(st.sampled_from(PATTERNS), st.floats(0.1, 100), st.integers(0, 5))
def test_arrivals_ascend_and_are_those_of_their_seed(pattern, rate, seed):
    """From 0, in order, within the duration, and the same again."""
    due = offsets_s(pattern, rate, requests=50, duration_s=3.0, seed=seed)
    assert due[0] == 0
    assert list(due) == sorted(due)
    assert due[-1] < 3.0
    assert due == offsets_s(pattern, rate, requests=50, duration_s=3.0, seed=seed)


def test_another_seed_gives_other_arrivals():
    """Negative control of the property above."""
    assert gaps("poisson", n=3, seed=0) != gaps("poisson", n=3, seed=1)


def test_a_trace_begins_at_its_first_request_and_is_stretched_to_a_rate():
    """Three requests in 4 s are 0.5 a second; at 2 a second they take 1 s."""
    assert rescaled((10.0, 11.0, 14.0), None) == (0, 1, 4)
    assert rescaled((10.0, 11.0, 14.0), 2.0) == (0, 0.25, 1)


def test_a_trace_file_is_read_with_its_lengths(tmp_path):
    """Milliseconds, as in Mooncake's traces."""
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp": 0, "input_length": 5, "output_length": 2}\n'
        '{"timestamp": 250, "input_length": 6, "output_length": 3}\n',
    )
    traffic = Traffic.from_jsonl(path, unit_s=0.001)
    assert (traffic.timestamps_s, traffic.prompt_tokens, traffic.output_tokens) == (
        (0, 0.25),
        (5, 6),
        (2, 3),
    )
    assert Serve(traffic=traffic, rate=8).due_s() == (0, 0.125)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no request"),
        ("nonsense", ":1: not a JSON object"),
        ('{"time": 1}', "no number 'timestamp'"),
        ('{"timestamp": 2}\n{"timestamp": 1}', "request 2 comes before"),
        ('{"timestamp": 1, "input_length": 5}\n{"timestamp": 2}', "'input_length' must be"),
    ],
)
def test_a_trace_file_that_is_wrong_is_refused_with_its_line(tmp_path, text, message):
    """And says what was expected."""
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        Traffic.from_jsonl(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "how is it loaded"),
        ({"rate": 1}, "when does it end"),
        ({"rate": 1, "concurrency": 2, "requests": 3}, "Keep one"),
        ({"rate": 0, "requests": 3}, r"rate=0\): a number above 0"),
        ({"rate": float("nan"), "requests": 3}, "a number above 0"),
        ({"concurrency": 1.5, "requests": 3}, "whole number"),
        ({"rate": 1, "requests": 3, "arrivals": "poison"}, "Did you mean 'poisson'"),
        ({"rate": 1, "requests": 3, "burstiness": 2}, "is of arrivals='gamma'"),
        ({"rate": 1, "duration": 3, "ramp_up": 3}, "nothing is left"),
        ({"rate": 1, "requests": 3, "prompt_tokens": None}, "no length of their own"),
        ({"rate": 1, "requests": 3, "slo": 0.2}, "a Slo is needed"),
    ],
)
def test_a_load_that_means_nothing_is_refused(wrong, message):
    """Before anything is loaded."""
    with pytest.raises(UsageError, match=message):
        Serve(**wrong)


def test_a_rate_that_would_never_end_is_refused():
    """More than a million requests in one run."""
    with pytest.raises(UsageError, match="1000000"):
        Serve(rate=1e6, duration=100).due_s()


def test_the_short_text_names_the_load():
    """For tables."""
    assert describe_serve(Serve(rate=4, requests=9)) == "serve 4/s poisson p128 n128"
    assert (
        describe_serve(Serve(concurrency=8, requests=9, prompt_tokens=16, max_new_tokens=4))
        == "serve c8 p16 n4"
    )


def searched(limit, first=1.0, within=0.1):
    """The probes of a server that keeps every rate up to its limit."""
    probes = []
    while (rate := next_rate(probes, first=first, within=within)) is not None:
        probes.append(
            Probe(
                rate=rate,
                attainment=1.0,
                sustained=rate <= limit,
                why="" if rate <= limit else "too slow",
            )
        )
    return RateSearch(probes=tuple(probes))


def test_the_search_doubles_then_takes_geometric_means():
    """The limit is 5.

    Tried are 1, 2, 4, 8, then sqrt(32) = 5.66, sqrt(4 x 5.66) = 4.76, and sqrt(4.76 x 5.66) = 5.19.
    """
    found = searched(5.0)
    assert [p.rate for p in found.probes] == pytest.approx(
        [1, 2, 4, 8, 5.657, 4.757, 5.187], abs=0.001
    )
    assert found.highest == pytest.approx(4.757, abs=0.001)
    assert "5.19/s is not: too slow" in str(found)


@given(st.floats(0.01, 500))
def test_the_search_ends_within_its_share_of_the_limit(limit):
    """Below the limit, and a tenth more is above it."""
    found = searched(limit)
    assert found.highest <= limit < found.highest * 1.11
    assert len(found.probes) <= 24


def test_a_search_without_a_limit_and_one_without_a_rate_end():
    """After twelve doublings and twelve halvings."""
    assert searched(float("inf")).lowest_broken is None
    assert searched(0.0).highest is None
    assert "none that was tried" in str(searched(0.0))


def test_a_rate_above_one_that_broke_is_not_believed():
    """Chance may let it pass."""
    probes = (
        Probe(rate=2, attainment=1, sustained=True),
        Probe(rate=4, attainment=0, sustained=False),
        Probe(rate=8, attainment=1, sustained=True),
    )
    assert RateSearch(probes=probes).highest == 2


def test_at_changes_the_loop():
    """A sweep over rates or lines."""
    work = Serve(rate=1, requests=5, slo=Slo(ttft=1))
    assert work.at(concurrency=4) == Serve(concurrency=4, requests=5, slo=Slo(ttft=1))
    with pytest.raises(UsageError, match="one of them"):
        work.at()
