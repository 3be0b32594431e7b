"""Known answers: scripted token times must yield exactly the quantities computed by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pytest_llmperf.core.metrics.offline import reduce
from pytest_llmperf.core.metrics.origin import NO_ORIGIN, Origin
from pytest_llmperf.core.metrics.quantities import TABLE, leaves
from pytest_llmperf.core.metrics.readings import Readings
from pytest_llmperf.core.metrics.request_times import NOT_TIMED
from pytest_llmperf.core.metrics.results import Memory, RunResult
from pytest_llmperf.core.trace import (
    Ceilings,
    EnergyReading,
    MemoryGauges,
    RequestTrace,
    StepCost,
    TokenEvent,
    Trace,
)
from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable
from pytest_llmperf.errors import InvalidRun, NotMeasured, UsageError
from pytest_llmperf.workloads import Decode, Prefill

MS = 1_000_000
STEP = StepCost(
    weight_bytes_read=1000,
    kv_bytes_per_token=10,
    flops_per_token=2000.0,
    attention_flops_per_token_per_position=4.0,
    compute_dtype="bfloat16",
)
CEILINGS = Ceilings(device="scripted", copy_bytes_per_s=1e6, matmul_flop_per_s={"bfloat16": 1e6})
UNREAD = {"reserved": "no allocator", "process": "no driver", "device": "no driver"}
MEMORY = MemoryGauges(weights=1000, peak=3000, kv_cache=500, reasons=UNREAD)
NO_ENERGY = EnergyReading(joules=None, seconds=0, n_output_tokens=0, reason="no counter")
ENERGY = EnergyReading(joules=60.0, seconds=3.0, n_output_tokens=120, source="nvml-counter")


def request(*times_ms, due_ms=1000, n_prompt=8, bundles=None, failure=None):
    """A request whose tokens come `times_ms` after it was due."""
    sizes = bundles or [1] * len(times_ms)
    events = tuple(
        TokenEvent(round((due_ms + t) * MS), n) for t, n in zip(times_ms, sizes, strict=True)
    )
    return RequestTrace(
        n_prompt_tokens=n_prompt, t_due_ns=due_ms * MS, events=events, failure=failure
    )


def trace(*requests, repetition=0, **more):
    return Trace(repetition=repetition, requests=requests, **more)


READINGS = Readings(step=STEP, ceilings=CEILINGS, memory=(MEMORY,), energy=ENERGY, load_s=2.5)


def run(*traces, new_tokens=5, origin=NO_ORIGIN, **readings):
    workload = Decode(new_tokens=new_tokens) if new_tokens > 1 else Prefill()
    return reduce(traces, workload, READINGS._replace(**readings), origin)


# Prefill 40 ms, then gaps of 10, 10, 20, 20 ms: 100 ms for 5 tokens.
BATCH_OF_TWO = trace(request(40, 50, 60, 80, 100), request(40, 50, 60, 80, 100))
FOUR = [BATCH_OF_TWO] * 4


def test_a_batch_of_two_gives_the_numbers_computed_by_hand():
    found = run(*FOUR)
    assert float(found.throughput) == pytest.approx(10 / 0.100)
    assert float(found.prefill_throughput) == pytest.approx(16 / 0.040)
    assert float(found.decode_throughput) == pytest.approx(8 / 0.060)
    assert float(found.ttft.p50) == pytest.approx(0.040)
    assert float(found.tpot.p50) == pytest.approx(0.060 / 4)
    assert float(found.latency.p50) == pytest.approx(0.100)
    assert sorted(found.itl.samples) == pytest.approx([0.010] * 8 + [0.020] * 8)
    assert float(found.itl.p50) == pytest.approx(0.015)
    assert float(found.itl.mean) == pytest.approx(0.015)
    assert float(found.load_time) == 2.5
    assert found.output_throughput is found.throughput


def test_repetitions_are_the_samples_and_equal_ones_leave_no_doubt():
    found = run(*FOUR)
    assert (found.throughput.n, len(found.ttft.samples), len(found.tpot.samples)) == (4, 4, 4)
    assert found.throughput.low == found.throughput.value == found.throughput.high
    assert found.throughput >= 100


def test_a_message_of_several_tokens_is_as_many_gaps():
    """40 ms to the first message of 2 tokens, then 3 tokens after 30 ms."""
    found = run(*[trace(request(40, 70, bundles=[2, 3]))] * 4)
    assert found.itl.samples == pytest.approx([0.010] * 12)
    assert float(found.tpot.p50) == pytest.approx(0.030 / 4)
    assert float(found.ttft.p50) == pytest.approx(0.040)


def test_requests_of_different_times_pool_their_gaps_and_average_the_rest():
    found = run(
        *[trace(request(40, 50, due_ms=1000), request(60, 90, due_ms=1010))] * 4, new_tokens=2
    )
    assert sorted(found.itl.samples) == pytest.approx([0.010] * 4 + [0.030] * 4)
    assert float(found.ttft.p50) == pytest.approx(0.050)
    assert float(found.tpot.p50) == pytest.approx(0.020)
    assert float(found.throughput) == pytest.approx(4 / 0.100)
    assert float(found.decode_throughput) == pytest.approx(2 / 0.060)


def test_percentiles_over_repetitions_are_those_computed_by_hand():
    found = run(*[trace(request(t, t + 10), repetition=t) for t in range(1, 41)], new_tokens=2)
    assert float(found.ttft.p95) == pytest.approx(0.03805)
    assert float(found.ttft.p90) == pytest.approx(0.0361)
    assert float(found.latency.p50) == pytest.approx(0.0305)
    with pytest.raises(
        NotMeasured,
        match=r"ttft\.p99 could not be measured: 40 samples, percentile 99 needs at least 200",
    ):
        assert found.ttft.p99 <= 1


def test_bandwidth_and_flops_of_a_decode_step():
    """Each of two sequences attends to 8 prompt tokens and on average 2.5 generated ones."""
    found = run(*FOUR)
    assert float(found.mbu) == pytest.approx((1000 + 10 * 2 * 10.5) / 0.015 / 1e6)
    assert float(found.mfu) == pytest.approx(2 * (2000 + 4 * 10.5) / 0.015 / 1e6)
    assert float(found.prefill_mfu) == pytest.approx(2 * (8 * 2000 + 4 * 36) / 0.040 / 1e6)


def test_a_prefill_has_no_time_per_output_token():
    found = run(*[trace(request(40))] * 4, new_tokens=1)
    assert float(found.prefill_throughput) == pytest.approx(200)
    assert float(found.mfu) == pytest.approx(float(found.prefill_mfu))
    for name in ("tpot.p50", "itl.p50", "decode_throughput", "mbu"):
        with pytest.raises(NotMeasured):
            float(found.metric(name))


def test_paired_runs_carry_their_pair_and_origin():
    ours = run(*FOUR, origin=Origin("bf16", "decode b2 p8 n5 on scripted", pair="p"))
    ref = run(
        *[trace(request(80, 100, 120, 160, 200), request(80, 100, 120, 160, 200))] * 4,
        origin=Origin("fp32", pair="p"),
    )
    finding = ours.throughput >= 2.5 * ref.throughput
    assert (
        finding.text
        == "throughput of bf16 is 2.00x fp32 [2.00, 2.00], claimed >= 2.50x  (4 pairs, interleaved)"
    )
    assert (ours.ttft.p50 / ref.ttft.p50).low == pytest.approx(0.5)


def test_failed_requests_are_counted_and_in_no_number():
    failed = request(due_ms=900, failure="connection reset")
    half = request(500, due_ms=900, failure="stream ended")
    found = run(*[trace(request(40, 50, 60, 80, 100), failed, half)] * 4)
    assert (found.n_requests, found.n_failed) == (12, 8)
    assert float(found.throughput) == pytest.approx(5 / 0.100)


def test_a_run_in_which_everything_failed_is_invalid():
    with pytest.raises(
        InvalidRun, match=r"no request of 1 repetitions succeeded: connection reset"
    ):
        run(trace(request(failure="connection reset")))
    with pytest.raises(InvalidRun, match=r"no request of 0 repetitions"):
        run()


@pytest.mark.parametrize(
    ("times", "what"),
    [((-1, 50), "TTFT"), ((0, 50), "TTFT"), ((60, 50), "a gap between tokens")],
    ids=["before due", "at once", "backwards"],
)
def test_a_derived_time_that_is_not_positive_is_an_error(times, what):
    with pytest.raises(InvalidRun, match=what):
        run(trace(request(*times)), new_tokens=2)


def test_an_output_of_another_length_is_an_error():
    with pytest.raises(InvalidRun, match=r"outputs of \[4\] tokens, 5 were asked for"):
        run(BATCH_OF_TWO, trace(request(40, 50, 60, 80), repetition=1))


@given(st.lists(st.lists(st.integers(1, 50), min_size=3, max_size=3), min_size=4, max_size=12))
def test_end_to_end_is_ttft_and_the_other_tokens(gaps):
    times = [[sum(row[: i + 1]) for i in range(3)] for row in gaps]
    found = run(*[trace(request(*row)) for row in times], new_tokens=3, ceilings=None)
    for ttft, tpot, latency in zip(
        found.ttft.samples, found.tpot.samples, found.latency.samples, strict=True
    ):
        assert latency == pytest.approx(ttft + 2 * tpot)
    assert math.fsum(found.itl.samples) == pytest.approx(sum(sum(row[1:]) for row in gaps) / 1000)


@pytest.mark.parametrize(
    ("missing", "names", "reason"),
    [
        ({"step": None}, ("mbu", "mfu", "prefill_mfu"), "does not tell"),
        ({"ceilings": None}, ("mbu", "mfu", "prefill_mfu"), "ceilings"),
        (
            {"ceilings": Ceilings(device="d", copy_bytes_per_s=1e6, matmul_flop_per_s={})},
            ("mfu", "prefill_mfu"),
            "bfloat16",
        ),
        ({"memory": ()}, ("memory.weights", "memory.peak", "memory.imbalance"), "no memory"),
        (
            {"memory": (MEMORY,)},
            ("memory.reserved", "memory.process", "memory.device"),
            "no allocator|no driver",
        ),
        (
            {"memory": (MemoryGauges(weights=0, reasons={"weights": "not seen"}),)},
            ("memory.weights",),
            "not seen",
        ),
        ({"energy": None}, ("energy.per_token",), "no energy"),
        (
            {"energy": NO_ENERGY},
            ("energy.per_token",),
            "no counter",
        ),
        (
            {"energy": EnergyReading(joules=1.0, seconds=2.9, n_output_tokens=9)},
            ("energy.per_token",),
            "2.9 s, 3 s are needed",
        ),
        ({"load_s": None}, ("load_time",), "nothing was loaded"),
        ({}, ("goodput",), "no SLO"),
        ({}, ("acceptance_length",), "nothing proposes tokens"),
    ],
)
def test_what_is_missing_is_not_measurable_and_never_zero(missing, names, reason):
    found = run(*FOUR, **missing)
    values = {value.name: value for value in found.metric_values()}
    for name in names:
        with pytest.raises(NotMeasured, match=reason):
            assert found.metric(name) <= 1e12
        assert values[name].value is None
        assert values[name].reason


def test_without_token_times_only_whole_requests_are_measured():
    found = run(*[trace(request(100, bundles=[7]), token_times=False)] * 4)
    assert float(found.throughput) == pytest.approx(70)
    assert float(found.latency.p50) == pytest.approx(0.1)
    for name in (
        "ttft.p50",
        "tpot.p50",
        "itl.p50",
        "mbu",
        "mfu",
        "prefill_throughput",
        "decode_throughput",
    ):
        assert isinstance(found.metric(name), NotMeasurable)


def test_memory_of_ranks_is_summed_and_its_imbalance_is_the_largest_over_the_mean():
    found = run(
        *FOUR, memory=[MemoryGauges(weights=100, peak=300), MemoryGauges(weights=100, peak=500)]
    ).memory
    assert (float(found.weights), float(found.peak)) == (200, 800)
    assert float(found.imbalance) == pytest.approx(500 / 400)
    assert [rank.peak for rank in found.ranks] == [300, 500]


def test_a_gauge_that_one_rank_lacks_is_not_measurable():
    found = Memory.of(
        [MemoryGauges(weights=1, peak=3), MemoryGauges(weights=3, reasons={"peak": "no counter"})]
    )
    with pytest.raises(NotMeasured, match=r"rank 1: no counter"):
        float(found.peak)
    assert float(found.imbalance) == pytest.approx(1.5)


def test_energy_is_joules_over_output_tokens():
    assert float(run(*FOUR).energy.per_token) == pytest.approx(0.5)
    with pytest.raises(InvalidRun, match=r"energy counter \(nvml-counter\) went by -1"):
        run(
            *FOUR,
            energy=EnergyReading(
                joules=-1.0, seconds=4.0, n_output_tokens=9, source="nvml-counter"
            ),
        )


def test_a_metric_is_found_by_name_and_a_misspelt_one_is_suggested():
    found = run(*FOUR)
    assert found.metric("output_throughput") is found.throughput
    assert isinstance(found.metric("memory.peak"), Estimate)
    with pytest.raises(
        UsageError,
        match=r"'memory\.peek' is not known\. Did you mean 'memory\.peak'\?$",
    ):
        found.metric("memory.peek")
    with pytest.raises(UsageError, match=r"'samples' is not known"):
        found.metric("samples")


def test_every_quantity_of_a_run_is_recorded_with_its_formula():
    values = run(*FOUR).metric_values()
    assert [value.name for value in values] == [name for name, _ in leaves()]
    assert [value.formula for value in values] == [row.formula for _, row in leaves()]
    throughput = values[0]
    assert (throughput.name, throughput.low, throughput.confidence, throughput.n) == (
        "throughput",
        pytest.approx(100),
        0.99,
        4,
    )


def test_an_end_that_nothing_bounds_is_recorded_as_none():
    values = {value.name: value for value in run(*FOUR[:3]).metric_values()}
    assert (values["throughput"].low, values["throughput"].high) == (0.0, None)


def test_samples_are_kept_by_name_without_the_gaps():
    found = run(*FOUR).samples()
    assert found["ttft"] == pytest.approx((0.04,) * 4)
    assert "itl" not in found
    assert "tpot" not in run(*[trace(request(40))] * 4, new_tokens=1).samples()


def test_a_run_that_was_not_measured_has_nothing_to_claim():
    found = RunResult.unmeasured("measuring is disabled")
    for name, _ in leaves():
        with pytest.raises(NotMeasured, match=r"measuring is disabled"):
            assert found.metric(name) <= 1e12
    assert found.samples() == {}
    assert all(value.value is None for value in found.metric_values())


def test_formula_ids_are_versioned():
    assert all(row.formula.rpartition("/")[2].isdigit() for row in TABLE.values())


def assisted(forwards=3):
    """Five tokens in three forward passes: two at 40 ms, two at 60, one at 80."""
    return trace(request(40, 60, 80, bundles=(2, 2, 1)), forwards=forwards)


def test_the_acceptance_length_is_output_tokens_over_forward_passes():
    found = run(*[assisted()] * 4)
    assert float(found.acceptance_length) == pytest.approx(5 / 3)
    assert float(found.throughput) == pytest.approx(5 / 0.080)
    assert float(found.ttft.p50) == pytest.approx(0.040)
    assert found.itl.samples == pytest.approx([0.010, 0.010, 0.020] * 4)


def test_a_step_that_gives_several_tokens_moves_its_bytes_once():
    """Two passes in 40 ms read 1000 + 50 B of an assistant + 10 B a position each.

    The number of tokens that they give changes nothing.
    """
    step = structs.replace(STEP, assistant_bytes_read=50.0)
    found = run(*[assisted()] * 4, step=step)
    assert float(found.mbu) == pytest.approx((1000 + 50 + 10 * (8 + 2.5)) / 0.020 / 1e6)
    plain = run(*[trace(request(40, 50, 60, 70, 80))] * 4)
    assert float(plain.mbu) == pytest.approx((1000 + 10 * (8 + 2.5)) / 0.010 / 1e6)


def test_one_repetition_without_a_count_leaves_the_acceptance_length_unmeasured():
    found = run(*[assisted()] * 3, assisted(forwards=None))
    assert isinstance(found.acceptance_length, NotMeasurable)


@pytest.mark.parametrize(
    ("what", "measured"), [("", {"tpot", "itl"}), ("gaps", {"tpot"}), ("tokens", set())]
)
def test_what_a_stream_does_not_tell_is_not_measured_in_a_batch(what, measured):
    """The rest is: the first token, the end and the number of tokens are known."""
    one = structs.replace(request(40, 50, 60, 80, 100), untimed=what)
    found = run(*[trace(one)] * 4)
    names = {name for name in ("tpot", "itl") if getattr(getattr(found, name), "reason", "") == ""}
    assert names == measured
    assert found.latency.p50.value == pytest.approx(0.1)
    assert (getattr(found.decode_throughput, "reason", "") == NOT_TIMED) is (what == "tokens")
