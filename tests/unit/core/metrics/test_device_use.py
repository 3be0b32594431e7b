"""MBU and MFU: what a step sees of windows, states and latents, and no share above 1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pytest_llmperf.core.metrics.offline import reduce
from pytest_llmperf.core.metrics.readings import Readings
from pytest_llmperf.core.trace import Ceilings, RequestTrace, StepCost, TokenEvent, Trace, Window
from pytest_llmperf.errors import BeyondCeiling, InvalidRun
from pytest_llmperf.workloads import Decode

STEP = StepCost(
    weight_bytes_read=1000,
    kv_bytes_per_token=10,
    flops_per_token=2000.0,
    attention_flops_per_token_per_position=4.0,
    compute_dtype="bfloat16",
)
CEILINGS = Ceilings(device="scripted", copy_bytes_per_s=1e6, matmul_flop_per_s={"bfloat16": 1e6})
REQUEST = RequestTrace(
    n_prompt_tokens=8,
    t_due_ns=0,
    events=tuple(TokenEvent(t * 1_000_000) for t in (40, 50, 60, 80, 100)),
)
FOUR = [Trace(repetition=0, requests=(REQUEST, REQUEST))] * 4


def run(*traces, step=STEP, ceilings=CEILINGS):
    """A batch of two: 40 ms to the first token, then 15 ms a token."""
    return reduce(traces, Decode(new_tokens=5), Readings(step=step, ceilings=ceilings))


@pytest.mark.parametrize("chunked", [False, True])
@given(n=st.integers(0, 60), reach=st.integers(1, 20))
def test_a_window_sees_what_is_counted_token_by_token(chunked, n, reach):
    """Token i of a text sees i positions, as many as the window has, or its chunk up to itself."""
    window = Window(
        positions=reach,
        kv_bytes_per_token=1,
        attention_flops_per_token_per_position=1.0,
        chunked=chunked,
    )
    seen = [(i - 1) % reach + 1 if chunked else min(i, reach) for i in range(1, n + 1)]
    assert window.seen_by_all(n) == sum(seen)


WINDOWED = structs.replace(
    STEP,
    state_bytes=300,
    windows=(
        Window(positions=10, kv_bytes_per_token=20, attention_flops_per_token_per_position=8.0),
    ),
)


def test_layers_with_a_window_and_states_count_what_they_see():
    """Steps 1 to 4 after a prompt of 8 see 9, 10, 11 and 12 positions; 9, 10, 10 and 10 inside."""
    found = run(*FOUR, step=WINDOWED)
    cache = 10 * 10.5 + 20 * 9.75 + 300
    assert float(found.mbu) == pytest.approx((1000 + 2 * cache) / 0.015 / 1e6)
    assert float(found.mfu) == pytest.approx(2 * (2000 + 4 * 10.5 + 8 * 9.75) / 0.015 / 1e6)
    prefill = 2 * (8 * 2000 + (4 + 8) * 36)
    assert float(found.prefill_mfu) == pytest.approx(prefill / 0.040 / 1e6)


def test_keys_made_anew_from_latents_count_for_every_earlier_position():
    found = run(*FOUR, step=structs.replace(STEP, expansion_flops_per_position=100.0))
    assert float(found.mfu) == pytest.approx(2 * (2000 + 4 * 10.5 + 100 * 9.5) / 0.015 / 1e6)
    assert float(found.prefill_mfu) == float(run(*FOUR).prefill_mfu)


def test_the_denominator_is_the_faster_one_of_a_copy_and_of_a_read():
    """A step reads and hardly writes: a copy, which does both, is slower on most devices."""
    by_copy = float(run(*FOUR, ceilings=CEILINGS).mbu)
    faster = structs.replace(CEILINGS, read_bytes_per_s=2e6)
    slower = structs.replace(CEILINGS, read_bytes_per_s=5e5)
    assert float(run(*FOUR, ceilings=faster).mbu) == pytest.approx(by_copy / 2)
    assert float(run(*FOUR, ceilings=slower).mbu) == by_copy


@pytest.mark.parametrize(
    ("ceilings", "named"),
    [
        (
            structs.replace(CEILINGS, copy_bytes_per_s=5e4),
            r"^mbu is 1\.61, .* 5e-05 GB/s of a copy, [^G]* TFLOP",
        ),
        (
            structs.replace(CEILINGS, copy_bytes_per_s=5e4, read_bytes_per_s=6e4),
            r"^mbu is 1\.34, .* 5e-05 GB/s of a copy, 6e-05 GB/s of a sum",
        ),
        (
            structs.replace(CEILINGS, matmul_flop_per_s={"bfloat16": 1e5}, disturbed="others"),
            r"^mfu is 2\.72, .*beside others: others",
        ),
    ],
)
def test_a_share_above_one_makes_the_run_invalid(ceilings, named):
    """It is a wrong time, a wrong cost or a wrong ceiling, and no number."""
    with pytest.raises(BeyondCeiling, match=named):
        run(*FOUR, ceilings=ceilings)
    assert issubclass(BeyondCeiling, InvalidRun)
