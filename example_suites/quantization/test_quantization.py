"""What 8 and 4 bits buy, and what they cost, on a real chat model."""

import pytest

from pytest_llmperf import Decode, PromptSet

# How fast each one is gets recorded, and nothing is claimed: six seconds are enough for that.
pytestmark = pytest.mark.llmperf(model="smollm2-135m", budget=6)

CHAT = PromptSet.bundled("short-chat")
ALL_AT_ONCE = len(CHAT.texts)
"""Prompts in one forward when answers are compared: each step unpacks the weights once for all."""


@pytest.fixture
def decode(llm_factory):
    """One sequence of chat text, as long as the device can afford."""
    if llm_factory().device == "cuda":
        return Decode(batch=1, prompt_tokens=128, new_tokens=128, prompts=CHAT)
    return Decode(batch=1, prompt_tokens=32, new_tokens=16, prompts=CHAT)


@pytest.mark.parametrize("llm", ["int8", "int8wo"], indirect=True)
def test_eight_bits_save_memory_and_keep_the_perplexity(llm, baseline, decode):
    """`baseline` is the same model in fp32.

    Its linear layers hold 79 % of the weights; the embedding stays in fp32 here.
    """
    candidate, ref = llm.compare(baseline, decode)
    assert candidate.memory.weights <= 0.42 * ref.memory.weights

    agreement = llm.agreement(baseline, batch=ALL_AT_ONCE)
    assert agreement.perplexity_ratio <= 1.10
    assert agreement.top5 >= 0.95


@pytest.mark.parametrize(
    ("llm", "budget"), [("bf16+nf4", 2.0), ("bf16+fp4", 3.0)], indirect=["llm"]
)
def test_four_bits_save_more_and_cost_more(llm, budget, baseline, decode):
    """Everything that is not quantized in bf16.

    There is no default rule for 4 bit: the budgets are the test's own.
    """
    candidate, ref = llm.compare(baseline, decode)
    assert candidate.memory.weights <= 0.23 * ref.memory.weights
    assert llm.agreement(baseline, batch=ALL_AT_ONCE).perplexity_ratio <= budget


@pytest.mark.llmperf(strategy="bf16+nf4")
def test_what_was_quantized_can_be_asked_for(llm):
    """Every linear layer but the output head, in the bytes that follow from the shapes."""
    quantized = llm.effective.quantized
    assert quantized.converted == quantized.layers - 1
    assert [group.example for group in quantized.left_out] == ["lm_head"]
    assert sum(quantized.stored_bytes.values()) == sum(quantized.analytic.values())
