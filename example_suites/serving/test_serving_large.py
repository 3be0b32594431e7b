"""At full size, on a GPU: chat traffic on a 7B architecture under limits of 200 ms and 50 ms.

Skipped where there is no GPU or vLLM. Its weights are random and made on the device, so nothing is
asked of its answers.
"""

import os
import shutil

import pytest
from msgspec.structs import replace

from pytest_llmperf import Serve, Slo
from pytest_llmperf.units import GB, ms

pytestmark = [
    pytest.mark.llmperf(
        model="arch:falcon-7b", engine="server:vllm", device="cuda", strategy="bf16"
    ),
    pytest.mark.llmperf_gpus(1, memory=60 * GB),
    pytest.mark.skipif(
        shutil.which("vllm") is None and "LLMPERF_SERVER_VLLM" not in os.environ,
        reason="no vLLM: install it, or set LLMPERF_SERVER_VLLM",
    ),
]
CHAT = Serve(
    rate=4,
    duration=40,
    ramp_up=5,
    prompt_tokens=512,
    max_new_tokens=128,
    slo=Slo(ttft=200 * ms, tpot=50 * ms),
)


def test_four_requests_a_second_are_served_within_the_limits(llm):
    """And the server neither preempts nor falls behind.

    Neighbours share its queue: a 95th percentile of them takes minutes.
    """
    run = llm.run(replace(CHAT, duration=180))
    assert run.ttft.p95 <= 200 * ms
    assert run.tpot.p95 <= 50 * ms
    assert run.serving.attainment >= 0.99
    assert run.serving.server["preemptions"] == 0
    assert not run.serving.saturated


def test_bursts_cost_goodput(llm):
    """The same mean rate in bursts (gamma arrivals of shape 0.25)."""
    run = llm.run(replace(CHAT, arrivals="gamma", burstiness=0.25))
    assert run.goodput >= 3


def test_sixteen_lines(llm):
    """A closed loop: what the server gives to sixteen clients that wait for each answer."""
    run = llm.run(Serve(concurrency=16, requests=96, prompt_tokens=128, max_new_tokens=128))
    assert run.n_failed == 0
    assert run.throughput >= 1000
