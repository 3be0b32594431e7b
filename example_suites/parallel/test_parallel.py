"""One model over several devices: its parts, its answers against one device, and what it gains.

Ranks share a CPU over gloo.
"""

import pytest

from pytest_llmperf import Decode, PromptSet

pytestmark = pytest.mark.llmperf(model="smollm2-135m", budget=6)

SHORT = Decode(batch=1, prompt_tokens=16, new_tokens=8)
SMALL = pytest.mark.llmperf(model="arch:small-llama")


@pytest.mark.parametrize("llm", ["fp32+tp3", "fp32+fsdp2"], indirect=True)
def test_a_real_model_in_parts_answers_as_on_one_device(llm, baseline):
    """It has 9 heads and 3 KV heads: three devices can share them, two cannot.

    FSDP cuts weights, and takes any number.
    """
    whole = baseline.effective.weights_bytes
    assert max(shard.bytes for shard in llm.effective.shards) <= 1.03 * whole / llm.effective.ranks
    assert llm.agreement(baseline, new_tokens=16).ok


@SMALL
@pytest.mark.parametrize("llm", ["fp32+tp2", "fp32+own-tp2", "fp32+own-pp2"], indirect=True)
def test_random_weights_compute_the_same_in_parts(llm, baseline):
    """A model without meaning shows the arithmetic; tokens are drawn, not written."""
    assert llm.agreement(baseline, prompts=PromptSet.synthetic(), new_tokens=16).ok


@SMALL
@pytest.mark.parametrize("llm", ["fp32+tp2", "fp32+dp2"], indirect=True)
def test_what_two_devices_gain(llm, baseline):
    """Speed-up and efficiency are recorded.

    On a CPU, where the ranks share the cores, there is none to claim.
    """
    candidate, _single = llm.compare(baseline, Decode(batch=4, prompt_tokens=32, new_tokens=16))
    assert candidate.speed_up.value == pytest.approx(2 * candidate.efficiency.value)
    if llm.device == "cuda" and llm.effective.shards[0].holds.startswith("replica"):
        assert candidate.efficiency >= 0.8


@SMALL
@pytest.mark.llmperf(strategy="fp32+offload-disk")
def test_weights_on_disk_leave_the_device_empty(llm, baseline):
    """For models that do not fit: every step reads all of them again."""
    candidate, ref = llm.compare(baseline, SHORT)
    assert candidate.memory.weights <= 0.01 * ref.memory.weights
    assert candidate.throughput < ref.throughput
