"""OpenMetrics text, read by the parser of Prometheus' own client."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
from support.hostile import ANY, HOSTILE
from support.reporting import METRICS, metric, record

from pytest_llmperf.report.openmetrics import exposition


def samples(text, family):
    return [sample for each in parse(text) if each.name == family for sample in each.samples]


def test_values_units_and_intervals_are_read_as_they_were():
    """In base units, never prefixed; percentiles are one family with a label."""
    found = {each.name: each for each in parse(exposition([record()]))}
    assert found["llmperf_throughput_tokens_per_second"].unit == "tokens_per_second"
    (speed,) = found["llmperf_throughput_tokens_per_second"].samples
    assert (speed.value, speed.labels["strategy"], speed.labels["formula"]) == (
        14.2,
        "bf16",
        "throughput/1",
    )
    ends = [
        found[f"llmperf_throughput_interval_{end}_tokens_per_second"].samples[0].value
        for end in ("low", "high")
    ]
    assert ends == [14.05, 14.35]
    assert {s.labels["statistic"]: s.value for s in found["llmperf_ttft_seconds"].samples} == {
        "p50": 0.0831,
        "p95": 0.0912,
    }
    assert found["llmperf_memory_peak_bytes"].samples[0].value == 612e6
    assert found["llmperf_mbu_ratio"].unit == "ratio"
    assert (
        samples(exposition([record()]), "llmperf_measured_timestamp_seconds")[0].value
        == 1795410000.0
    )


def test_what_was_not_measurable_is_not_there():
    """A 0 would be a lie."""
    assert samples(exposition([record()]), "llmperf_energy_per_token_joules") == []
    there = exposition([record(metrics=(metric("energy.per_token", 0.5, "J"),))])
    assert [s.value for s in samples(there, "llmperf_energy_per_token_joules")] == [0.5]


def test_the_outcome_is_a_state_set():
    """Exactly one state is 1."""
    found = samples(exposition([record(outcome="UNDECIDED")]), "llmperf_outcome")
    assert [s.labels["llmperf_outcome"] for s in found if s.value] == ["UNDECIDED"]
    assert len(found) > 5


def test_only_the_newest_run_of_a_series_is_there_and_other_series_are_apart():
    """Otherwise a reader would refuse the same sample twice."""
    runs = [
        record(
            1, created="2026-11-23T05:00:00+00:00", metrics=(metric("throughput", 1.0, "tok/s"),)
        ),
        record(
            2, created="2026-11-23T06:00:00+00:00", metrics=(metric("throughput", 2.0, "tok/s"),)
        ),
        record(3, model_hash="another content", metrics=(metric("throughput", 3.0, "tok/s"),)),
    ]
    found = samples(exposition(runs), "llmperf_throughput_tokens_per_second")
    assert sorted(s.value for s in found) == [2.0, 3.0]
    assert len({s.labels["series"] for s in found}) == 2


@settings(max_examples=100, deadline=None)
@given(ANY, ANY)
def test_any_text_is_a_label(test, model):
    """Quotes, backslashes, line breaks: they come back as they were."""
    found = samples(
        exposition([record(test=test, model=model)]), "llmperf_throughput_tokens_per_second"
    )
    (labels,) = [s.labels for s in found]
    assert labels.get("test", "") == test.encode("utf-8", "replace").decode()
    assert labels.get("model", "") == model.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("name", [name for name in HOSTILE if '"' in name or "\n" in name])
def test_the_same_text_unescaped_is_refused_or_read_as_something_else(name):
    """Negative control of the parser."""
    line = f'# TYPE llmperf_x gauge\nllmperf_x{{test="{name}"}} 1.0\n# EOF\n'
    try:
        labels = [s.labels for s in samples(line, "llmperf_x")]
    except (ValueError, KeyError, IndexError):
        return
    assert labels != [{"test": name}]


@pytest.mark.parametrize(
    "spoil",
    [lambda text: text.replace("# EOF", ""), lambda text: text.replace("gauge", "unknown_type", 1)],
)
def test_a_spoilt_exposition_is_refused(spoil):
    """Negative control: without its end, and of a type that is none."""
    with pytest.raises(ValueError, match=r".+"):
        list(parse(spoil(exposition([record()]))))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e-300, 5e20])
def test_any_number_is_read_back(value):
    """Also those that JSON lacks."""
    (found,) = samples(
        exposition([record(metrics=(metric("mbu", value, "1"),))]), "llmperf_mbu_ratio"
    )
    assert repr(found.value) == repr(value)


def test_without_runs_it_is_an_empty_exposition():
    """With its end."""
    assert exposition([]) == "# EOF\n"
    assert METRICS
