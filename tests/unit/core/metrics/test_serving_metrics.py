"""Quantities of traffic, computed by hand from made-up requests.

Times, rates, goodput, failures, lateness, saturation.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pytest_llmperf.core.metrics import saturation
from pytest_llmperf.core.metrics.origin import Origin
from pytest_llmperf.core.metrics.request_times import NOT_TIMED, gaps_s
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.metrics.serving import ServingTrace, client_mark, reduce_serving
from pytest_llmperf.core.metrics.serving_rates import BLOCKS, Counted
from pytest_llmperf.core.metrics.slo import Slo
from pytest_llmperf.core.trace import RequestTrace, TokenEvent
from pytest_llmperf.core.verdicts.estimate import NotMeasurable
from pytest_llmperf.errors import InvalidRun, UsageError
from pytest_llmperf.workloads import Serve

MS = 1_000_000


def request(due_ms, first_ms, gap_ms=10, n=3, *, late_ms=0, bundle=1, failure=None, n_prompt=5):
    """Due, first token `first_ms` later, then messages of `bundle` tokens every `gap_ms`."""
    events = tuple(
        TokenEvent(round((due_ms + first_ms + i * gap_ms) * MS), bundle if i else 1)
        for i in range(n)
    )
    return RequestTrace(
        n_prompt_tokens=n_prompt,
        t_due_ns=round(due_ms * MS),
        events=() if failure else events,
        failure=failure,
        t_sent_ns=round((due_ms + late_ms) * MS),
        t_end_ns=round((due_ms + first_ms + (n - 1) * gap_ms) * MS),
    )


def reduced(*requests, slo=None, ramp_up=0.0, **trace):
    """One run of these requests."""
    load = ServingTrace(requests=tuple(requests), **trace)
    return reduce_serving([load], Serve(rate=1, requests=1, slo=slo, ramp_up=ramp_up))


FOUR = [request(due, 50) for due in (0, 100, 200, 300)]


def test_times_and_rates_of_four_equal_requests():
    """TTFT 50 ms, TPOT 10 ms, 70 ms in all; 12 tokens and 4 requests in 370 ms."""
    run = reduced(*FOUR)
    assert [t.p50.value for t in (run.ttft, run.tpot, run.itl, run.latency)] == pytest.approx(
        [0.05, 0.01, 0.01, 0.07]
    )
    assert run.throughput.value == pytest.approx(12 / 0.37)
    assert run.total_throughput.value == pytest.approx(32 / 0.37)
    assert run.request_throughput.value == pytest.approx(4 / 0.37)
    assert (run.n_requests, run.n_failed) == (4, 0)
    assert run.serving.offered_rate == pytest.approx(10)
    assert isinstance(run.goodput, NotMeasurable)
    assert isinstance(run.ttft.p95, NotMeasurable)


def test_times_count_from_due_and_lateness_from_sending():
    """A request that is sent 3 ms late has them in its TTFT.

    The wall time begins with the first send.
    """
    run = reduced(*(request(due, 53, late_ms=3) for due in (0, 100, 200, 300)))
    assert run.ttft.p50.value == pytest.approx(0.053)
    assert run.serving.lateness_p99_s == pytest.approx(0.003)
    assert run.throughput.value == pytest.approx(12 / (0.373 - 0.003))


def test_a_bundle_of_k_tokens_is_k_gaps_of_one_kth():
    """Messages of 1, 4 and 4 tokens, 20 ms apart: eight gaps of 5 ms, TPOT 40 / 8 ms."""
    one = request(0, 50, gap_ms=20, n=3, bundle=4)
    assert gaps_s(one.events) == pytest.approx([0.005] * 8)
    assert reduced(one, *FOUR[1:]).tpot.samples[0] == pytest.approx(0.005)


def test_goodput_counts_requests_that_keep_every_limit():
    """One has a slow first token, one slow tokens, one failed: one of four is good."""
    requests = [
        FOUR[0],
        request(100, 90),
        request(200, 50, gap_ms=30),
        request(300, 50, failure="HTTP 503"),
    ]
    run = reduced(*requests, slo=Slo(ttft=0.06, tpot=0.02))
    assert run.serving.attainment == 0.25
    # The last completion is that of the third: 200 + 50 + 60.
    assert run.goodput.value == pytest.approx(1 / 0.31)
    assert run.serving.failures == {"HTTP 503": 1}
    assert run.n_failed == 1
    assert len(run.ttft.samples) == 3


def test_the_limit_itself_is_kept():
    """At most, not below."""
    assert Slo(ttft=0.05, tpot=0.01, latency=0.07).met_by(FOUR[0])
    assert not Slo(latency=0.0699).met_by(FOUR[0])


def test_requests_of_the_ramp_up_are_in_nothing():
    """Those due in the first 150 ms, slow as they were, are cut."""
    run = reduced(request(0, 900), request(100, 700), *FOUR[2:], ramp_up=0.15)
    assert run.ttft.max.value == pytest.approx(0.05)
    assert run.throughput.value == pytest.approx(6 / 0.17)
    assert (run.n_requests, run.serving.n_cut) == (2, 2)


def test_a_run_in_which_nothing_succeeded_is_invalid_with_the_reasons():
    """Counted."""
    with pytest.raises(InvalidRun, match=r"no request of 2 succeeded: HTTP 503 \(2 times\)"):
        reduced(*(request(due, 50, failure="HTTP 503") for due in (0, 100)))


def test_tokens_that_go_back_in_time_are_invalid():
    """The stream's times were mixed up."""
    with pytest.raises(InvalidRun, match="not in order"):
        reduced(request(0, 50, gap_ms=-1))


def test_the_mean_of_the_blocks_is_the_rate_of_the_whole():
    """10 equal blocks: 100 tokens in 1 s, half of them in the first tenth."""
    counted = [(0, 50.0), *((100 * MS * i, 50 / 9) for i in range(1, 10))]
    rates = Counted(counted, 0, 1000 * MS).block_rates()
    assert rates[0] == pytest.approx(500)
    assert sum(rates) / BLOCKS == pytest.approx(100)


def test_several_runs_are_samples_of_the_rates():
    """Of two servers in turn; the interval is that of the pairs."""
    runs = [ServingTrace(requests=tuple(FOUR)), ServingTrace(requests=tuple(FOUR[:2]))]
    run = reduce_serving(runs, Serve(rate=1, requests=1), load_s=1.0, origin=Origin(pair="p"))
    assert run.throughput.samples == pytest.approx((12 / 0.37, 6 / 0.17))
    assert run.throughput.pair == "p"


def test_in_flight_is_counted_over_time():
    """Four requests of 70 ms in 370 ms; two at once where they overlap."""
    assert saturation.in_flight_mean(FOUR, 0, 370 * MS) == pytest.approx(280 / 370)
    assert saturation.in_flight_max(FOUR) == 1
    assert saturation.in_flight_max([request(0, 150), *FOUR[1:]]) == 2


def test_a_queue_that_grows_is_over_saturated_and_one_that_does_not_is_not():
    """Every request waits 40 ms longer than the one before it.

    The negative control waits as long each time.
    """
    growing = [request(100 * i, 50 + 40 * i) for i in range(30)]
    assert "requests in flight grew from" in saturation.over_saturated(growing)
    assert saturation.over_saturated([request(100 * i, 50) for i in range(30)]) == ""
    assert saturation.over_saturated(growing[:6]) == ""
    assert reduced(*growing).serving.saturated


@pytest.mark.parametrize(
    ("late_ms", "lag_s", "busy", "reason"),
    [
        (0, 0.001, 0.5, None),
        (4.9, 0.001, 0.5, None),
        (5.5, 0.001, 0.5, "sent its requests 5.5 ms late"),
        (0, 0.02, 0.5, "saw its timers 20.0 ms late"),
        (0, 0.001, 0.95, "busy for 95% of the run"),
    ],
)
def test_a_client_that_is_the_limit_is_marked(late_ms, lag_s, busy, reason):
    """Lateness past 5 ms, timers that ring late, an event loop without time left."""
    requests = tuple(request(due, 50, late_ms=late_ms) for due in (0, 100, 200, 300))
    mark = client_mark(ServingTrace(requests=requests, loop_lag_s=(lag_s,), busy_share=busy), 0.0)
    assert (mark is None) == (reason is None)
    if mark is not None:
        assert mark.kind == "client-limited"
        assert reason in mark.detail


def test_lateness_below_a_hundredth_of_the_ttft_changes_nothing():
    """20 ms of a TTFT of 3 s."""
    requests = tuple(request(due, 3000, late_ms=20) for due in (0, 100, 200, 300))
    assert client_mark(ServingTrace(requests=requests), 0.0) is None


@pytest.mark.parametrize(
    "wrong", [{}, {"ttft": 0}, {"tpot": -1.0}, {"latency": True}, {"ttft": "1"}]
)
def test_an_slo_that_means_nothing_is_refused(wrong):
    """It names the value."""
    with pytest.raises(UsageError, match=r"Slo\("):
        Slo(**wrong)


@given(
    st.lists(
        st.tuples(st.floats(0, 1000), st.floats(1, 500), st.integers(1, 20)),
        min_size=2,
        max_size=20,
    )
)
def test_goodput_never_exceeds_the_request_throughput_nor_tokens_their_count(rows):
    """Whatever the load."""
    run = reduced(*(request(due, first, n=n) for due, first, n in rows), slo=Slo(ttft=0.25))
    assert run.goodput.value <= run.request_throughput.value * (1 + 1e-9)
    assert run.goodput.value == pytest.approx(run.serving.attainment * run.request_throughput.value)
    assert run.throughput.value <= run.total_throughput.value
    assert run.throughput.low <= run.throughput.value <= run.throughput.high


def test_the_former_name_of_what_is_said_of_traffic_works_with_a_warning():
    """`run.load` of 0.1 is `run.serving`."""
    run = RunResult.unmeasured("not measured")
    with pytest.warns(DeprecationWarning, match=r"run\.load is called run\.serving"):
        assert run.load is run.serving


def untimed(request_: RequestTrace, what: str, *, last_ms: int | None = None) -> RequestTrace:
    last_ns = 0 if last_ms is None else last_ms * MS
    return structs.replace(request_, untimed=what, t_last_ns=last_ns)


MANY = [request(due, 50) for due in range(0, 2000, 100)]


def test_a_request_of_unknown_token_times_is_in_no_mean_time_of_a_token():
    """One of twenty is left out; three of twenty are too many to leave out."""
    slow = untimed(request(2000, 50, gap_ms=500), "tokens")
    run = reduced(*MANY[1:], slow)
    assert run.tpot.max.value == pytest.approx(0.01)
    assert run.latency.max.value == pytest.approx(1.05)
    run = reduced(*MANY[3:], *(untimed(one, "tokens") for one in MANY[:3]))
    assert (run.tpot.reason, run.itl.reason) == (NOT_TIMED, NOT_TIMED)
    assert run.ttft.p50.value == pytest.approx(0.05)


def test_unknown_gaps_leave_the_mean_time_of_a_token():
    run = reduced(*(untimed(one, "gaps") for one in MANY))
    assert run.tpot.p50.value == pytest.approx(0.01)
    assert run.itl.reason == NOT_TIMED


def test_the_message_that_says_the_end_bounds_the_output():
    """Tokens that no message showed were made until then."""
    run = reduced(
        *(untimed(request(due, 50), "gaps", last_ms=due + 90) for due in range(0, 400, 100))
    )
    assert run.latency.p50.value == pytest.approx(0.09)
    assert run.tpot.p50.value == pytest.approx(0.02)
    assert run.throughput.value == pytest.approx(12 / 0.39)


def test_a_limit_on_a_time_that_is_not_known_is_not_kept():
    """A single token has no time after it, and keeps a limit on it."""
    slo = Slo(tpot=10)
    assert slo.met_by(request(0, 50))
    assert not slo.met_by(untimed(request(0, 50), "tokens"))
    assert not slo.met_by(structs.replace(request(0, 50, n=1), events=(TokenEvent(50 * MS, 8),)))
    assert not slo.met_by(request(0, 50, gap_ms=0))
    assert slo.met_by(request(0, 50, n=1))
