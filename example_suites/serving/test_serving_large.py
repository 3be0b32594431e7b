"""At full size, on a GPU: chat traffic on a 7B model under limits of 200 ms and 50 ms. Skipped where there is no GPU or vLLM."""

import shutil

import pytest
from msgspec.structs import replace

from pytest_llmperf import Serve, Slo
from pytest_llmperf.units import GB, ms

pytestmark = [
    pytest.mark.llmperf(model="mistralai/Mistral-7B-v0.3", engine="server:vllm", device="cuda", strategy="bf16"),
    pytest.mark.llmperf_gpus(1, memory=60 * GB),
    pytest.mark.skipif(shutil.which("vllm") is None, reason="vLLM is not installed"),
]
CHAT = Serve(rate=4, duration=60, ramp_up=10, prompt_tokens=512, max_new_tokens=128, slo=Slo(ttft=200 * ms, tpot=50 * ms))


def test_four_requests_a_second_are_served_within_the_limits(llm):
    """And the server neither preempts nor falls behind."""
    run = llm.run(CHAT)
    assert run.ttft.p95 <= 200 * ms
    assert run.tpot.p95 <= 50 * ms
    assert run.load.attainment >= 0.99
    assert run.load.server["preemptions"] == 0
    assert not run.load.saturated


def test_bursts_cost_goodput(llm):
    """The same mean rate in bursts (gamma arrivals of shape 0.25)."""
    run = llm.run(replace(CHAT, arrivals="gamma", burstiness=0.25))
    assert run.goodput >= 3
