"""What reduced precision buys, and what it costs, on a real chat model."""

import pytest

from pytest_llmperf import Decode, Prefill, PromptSet
from pytest_llmperf.units import s

# Three seconds for what is recorded and not claimed; the claim on speed has twelve.
pytestmark = pytest.mark.llmperf(model="smollm2-135m", budget=3)

CHAT = PromptSet.bundled("short-chat")


@pytest.fixture
def decode(llm_factory):
    """One sequence of chat text, as long as the device can afford."""
    if llm_factory().device == "cuda":
        return Decode(batch=1, prompt_tokens=128, new_tokens=128, prompts=CHAT)
    return Decode(batch=1, prompt_tokens=32, new_tokens=8, prompts=CHAT)


@pytest.fixture
def asked(llm_factory):
    """What both sides answer, in one forward: each step reads the weights once for all prompts.

    On a CPU these are chats alone. The default prompts have texts of up to a thousand tokens, whose
    prefill takes a CPU longer than everything else here.
    """
    prompts = PromptSet.bundled("agreement" if llm_factory().device == "cuda" else "short-chat")
    return {"prompts": prompts, "batch": len(CHAT.texts)}


@pytest.mark.parametrize("llm", ["fp16", "bf16"], indirect=True)
def test_half_precision_halves_the_weights_and_keeps_the_answers(llm, baseline, decode, asked):
    """`baseline` is the same model in fp32 on the same device.

    How fast each one is gets recorded; nothing is claimed.
    """
    candidate, ref = llm.compare(baseline, decode)
    assert candidate.memory.weights <= 0.55 * ref.memory.weights

    agreement = llm.agreement(baseline, **asked)
    assert agreement.ok
    assert agreement.top1 >= 0.90


@pytest.mark.parametrize("llm", ["fp16-mixed", "bf16-mixed"], indirect=True)
def test_mixed_precision_keeps_fp32_weights_and_the_answers(llm, baseline, decode, asked):
    """Autocast computes in 16 bit and stores in 32: it saves no memory, and says so."""
    run = llm.run(decode)
    assert run.memory.weights >= 0.99 * baseline.effective.weights_bytes
    assert llm.agreement(baseline, **asked).ok


@pytest.mark.llmperf(strategy="fp32+static-cache")
def test_a_static_cache_gives_the_same_tokens(llm, baseline, asked):
    """A KV cache of fixed size is a change of storage, not of arithmetic."""
    assert llm.agreement(baseline, **asked, rule="exact").ok


@pytest.mark.llmperf(strategy="bf16")
def test_the_first_token_of_a_chat_comes_in_time(llm):
    """A limit in seconds is a claim about this machine; choose it for yours.

    On a CPU it is one of CPU time, which other programs change less: the one token that comes
    takes less than that on the clock, since the threads work at once.
    """
    run = llm.run(Prefill(batch=1, prompt_tokens=64, prompts=CHAT))
    assert (run.cpu_time_per_token if llm.device == "cpu" else run.ttft.p50) <= 2 * s


@pytest.mark.llmperf(strategy="bf16+static-cache+compile", budget=12)
def test_compiled_decoding_is_faster(llm, baseline, decode, asked):
    """On a GPU eager decoding waits for the host, and compiling takes the host out of the way."""
    if llm.device != "cuda":
        pytest.skip("the claim is about GPUs: run with --llmperf-device cuda")
    candidate, ref = llm.compare(baseline, decode)
    assert candidate.throughput >= 2 * ref.throughput
    assert llm.agreement(baseline, **asked).ok
