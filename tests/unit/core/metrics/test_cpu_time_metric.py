"""CPU time an output token: one sample a repetition, or the reason why there is none."""

from __future__ import annotations

import msgspec
import pytest

from pytest_llmperf.core.metrics.offline import reduce
from pytest_llmperf.core.metrics.quantities import TABLE, leaves
from pytest_llmperf.core.metrics.serving import ServingTrace, reduce_serving
from pytest_llmperf.core.trace import RequestTrace, TokenEvent, Trace
from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable
from pytest_llmperf.errors import NotMeasured
from pytest_llmperf.settings.limits import parse_gate
from pytest_llmperf.workloads import Decode, Serve

WORK = Decode(batch=2, prompt_tokens=4, new_tokens=5)


def request(n_tokens: int = 5) -> RequestTrace:
    events = tuple(TokenEvent(1_000_000 * (index + 1)) for index in range(n_tokens))
    return RequestTrace(n_prompt_tokens=4, t_due_ns=0, events=events)


def trace(cpu_s: float | None, why: str = "") -> Trace:
    return Trace(repetition=0, requests=(request(), request()), cpu_s=cpu_s, no_cpu_s=why)


def of_traces(*traces: Trace) -> Estimate | NotMeasurable:
    return reduce(traces, WORK).cpu_time_per_token


def test_it_is_cpu_seconds_over_all_output_tokens_of_a_repetition():
    """Ten tokens came in each: 0.1, 0.2 and 0.4 s are 10, 20 and 40 ms a token."""
    measured = of_traces(trace(0.1), trace(0.2), trace(0.4))
    assert isinstance(measured, Estimate)
    assert measured.samples == pytest.approx((0.01, 0.02, 0.04))
    assert measured.value == pytest.approx(0.02)
    assert (measured.unit, measured.direction) == ("s", "lower")


def test_its_definition_has_a_formula_of_its_own():
    row = TABLE["cpu_time_per_token"]
    assert row.formula == "cpu_time_per_token/1"
    assert row.formula not in {other.formula for other in TABLE.values() if other is not row}
    assert ("cpu_time_per_token", row) in leaves()


@pytest.mark.parametrize("missing", [None, 0.0])
def test_one_repetition_without_it_leaves_it_unmeasured(missing):
    measured = of_traces(trace(0.1), trace(missing, "the model runs on a GPU"))
    assert isinstance(measured, NotMeasurable)
    assert measured.reason == "the model runs on a GPU"


def test_a_claim_on_what_was_not_measured_is_an_error_with_the_reason():
    measured = of_traces(trace(None, "the model runs on a GPU"))
    with pytest.raises(NotMeasured, match="runs on a GPU"):
        assert measured <= 1


def test_a_trace_of_before_says_nothing_of_it():
    """The worker of another version, or an old file: the two fields are not there."""
    old = msgspec.to_builtins(trace(None))
    del old["cpu_s"], old["no_cpu_s"]
    measured = of_traces(msgspec.convert(old, Trace))
    assert isinstance(measured, NotMeasurable)
    assert "does not read the CPU time" in measured.reason


def test_a_gate_takes_it():
    assert parse_gate("cpu_time_per_token:2%") == {"cpu_time_per_token": 0.02}


def test_traffic_counts_the_tokens_of_its_ramp_up_too():
    """The server's CPU time is of the whole run; 15 tokens came in it."""
    requests = tuple(
        RequestTrace(
            n_prompt_tokens=4,
            t_due_ns=second * 10**9,
            t_sent_ns=second * 10**9,
            events=tuple(TokenEvent(second * 10**9 + 10**6 * (i + 1)) for i in range(5)),
        )
        for second in range(3)
    )
    run = ServingTrace(requests=requests, cpu_s=0.3)
    work = Serve(rate=1.0, requests=3, ramp_up=1.0, prompt_tokens=4, max_new_tokens=5)
    measured = reduce_serving([run], work).cpu_time_per_token
    assert isinstance(measured, Estimate)
    assert measured.value == pytest.approx(0.02)
    missing = msgspec.structs.replace(run, cpu_s=None, no_cpu_s="the server ran already")
    assert isinstance(reduce_serving([missing], work).cpu_time_per_token, NotMeasurable)
