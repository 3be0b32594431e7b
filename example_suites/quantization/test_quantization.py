"""What 8 and 4 bits buy, and what they cost, on a real chat model."""

import pytest

from pytest_llmperf import Decode, PromptSet

# How fast each one is gets recorded, and nothing is claimed: three seconds are enough for that.
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


@pytest.mark.parametrize("llm", ["int8", "int8wo"], indirect=True)
def test_eight_bits_save_memory_and_keep_the_perplexity(llm, baseline, decode, asked):
    """`baseline` is the same model in fp32.

    Its linear layers hold 79 % of the weights; the embedding stays in fp32 here.
    """
    candidate, ref = llm.compare(baseline, decode)
    assert candidate.memory.weights <= 0.42 * ref.memory.weights

    agreement = llm.agreement(baseline, **asked)
    assert agreement.perplexity_ratio <= 1.10
    assert agreement.top5 >= 0.95


@pytest.mark.parametrize(
    ("llm", "budget"), [("bf16+nf4", 2.0), ("bf16+fp4", 3.0)], indirect=["llm"]
)
def test_four_bits_save_more_and_cost_more(llm, budget, baseline, decode, asked):
    """Everything that is not quantized in bf16.

    There is no default rule for 4 bit: the budgets are the test's own.
    """
    candidate, ref = llm.compare(baseline, decode)
    assert candidate.memory.weights <= 0.23 * ref.memory.weights
    assert llm.agreement(baseline, **asked).perplexity_ratio <= budget


@pytest.mark.llmperf(strategy="bf16+nf4")
def test_what_was_quantized_can_be_asked_for(llm):
    """Every linear layer but the output head, in the bytes that follow from the shapes."""
    quantized = llm.effective.quantized
    assert quantized.converted == quantized.layers - 1
    assert [group.example for group in quantized.left_out] == ["lm_head"]
    assert sum(quantized.stored_bytes.values()) == sum(quantized.analytic.values())
