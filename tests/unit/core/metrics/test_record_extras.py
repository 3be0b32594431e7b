"""What a record keeps for the reports beside its metrics."""

from __future__ import annotations

import pytest

from pytest_llmperf.core.metrics import record_extras
from pytest_llmperf.core.trace import Ceilings, RequestTrace, StepCost, TokenEvent, Trace

STEP = StepCost(
    weight_bytes_read=1,
    kv_bytes_per_token=1,
    flops_per_token=1.0,
    attention_flops_per_token_per_position=0.0,
    compute_dtype="float16",
)


def trace(*times_ms, bundle=1, token_times=True):
    events = tuple(TokenEvent(t_ns=round(t * 1e6), n_tokens=bundle) for t in times_ms)
    request = RequestTrace(n_prompt_tokens=1, t_due_ns=0, events=events)
    return Trace(repetition=0, requests=(request,), token_times=token_times)


def test_itl_by_position_is_the_median_of_each_gap():
    """Two repetitions: gaps of 10 and 20 ms, and of 30 and 40 ms."""
    found = record_extras.itl_by_position([trace(5, 15, 35), trace(5, 35, 75)])["itl_by_position"]
    assert found == {"token": [2, 3], "s": pytest.approx([0.02, 0.03])}


def test_a_long_output_is_cut_into_stretches():
    """200 gaps that grow: 64 medians that grow, the first stretch at token 2."""
    times = [t * t for t in range(201)]
    found = record_extras.itl_by_position([trace(*times)])["itl_by_position"]
    assert len(found["s"]) == len(found["token"]) == record_extras.MAX_POSITIONS
    assert found["token"][0] == 2
    assert found["s"] == sorted(found["s"])


@pytest.mark.parametrize("one", [trace(5), trace(5, 15, bundle=4), trace(5, 15, token_times=False)])
def test_where_tokens_have_no_time_of_their_own_there_is_no_profile(one):
    """One token, bundled tokens, only the end seen."""
    assert record_extras.itl_by_position([one]) == {}
    assert record_extras.itl_by_position([]) == {}


def test_ceilings_are_those_of_the_dtype_that_was_computed_in():
    """Another dtype's rate is no ceiling of this run."""
    measured = Ceilings(
        device="cpu",
        copy_bytes_per_s=2e10,
        read_bytes_per_s=3e10,
        matmul_flop_per_s={"float16": 3e9},
        measured_at="now",
    )
    found = record_extras.ceilings(measured, STEP)["ceilings"]
    assert (found["flop_per_s"], found["copy_bytes_per_s"], found["dtype"]) == (
        3e9,
        2e10,
        "float16",
    )
    assert found["bytes_per_s"] == 3e10
    other = Ceilings(device="cpu", copy_bytes_per_s=2e10, matmul_flop_per_s={"float32": 3e9})
    assert (
        record_extras.ceilings(other, STEP)
        == record_extras.ceilings(None, STEP)
        == record_extras.ceilings(measured, None)
        == {}
    )
