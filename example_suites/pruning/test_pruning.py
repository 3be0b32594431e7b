"""What pruning costs and what it buys, on a real chat model."""

from pathlib import Path

import pytest

from pytest_llmperf import Decode, PromptSet

pytestmark = pytest.mark.llmperf(model="smollm2-135m", budget=12)

CHAT = PromptSet.bundled("short-chat")
DECODE = Decode(batch=1, prompt_tokens=32, new_tokens=16, prompts=CHAT)
OTHERS = PromptSet.from_jsonl(Path(__file__).parent / "prompts.jsonl", chat=True)
"""Pruning is calibrated on the bundled prompts, so agreement is asked on these."""

EIGHT_BIT = "containment(k=8, horizon=4)+perplexity(1.03)+sqnr(20)"


@pytest.mark.parametrize(
    "llm", ["fp32+magnitude:0.1", "fp32+wanda:0.1", "fp32+sparsegpt:0.1"], indirect=True
)
def test_a_tenth_of_the_weights_can_go(llm, baseline):
    """A small model has few weights to spare: a tenth costs little, half a lot (the next test)."""
    assert llm.agreement(baseline, prompts=OTHERS).perplexity_ratio <= 1.2


@pytest.mark.parametrize(
    "llm", ["fp32+wanda:0.5", "fp32+wanda:2:4", "fp32+sparsegpt:0.5"], indirect=True
)
def test_half_of_the_weights_as_zeros_buy_nothing_without_kernels_for_them(llm, baseline):
    """The perplexity is recorded, and the speed compared.

    Zeros are multiplied as fast as other numbers, and stored as well.
    """
    candidate, ref = llm.compare(baseline, DECODE)
    assert llm.effective.sparsity == pytest.approx(0.5, abs=0.005)
    if llm.effective.pruned.stored == "dense":
        assert candidate.memory.weights >= 0.99 * ref.memory.weights
    assert llm.agreement(baseline, prompts=OTHERS).perplexity_ratio >= 1.0


@pytest.mark.parametrize("llm", ["fp32+structured:0.25"], indirect=True)
def test_removed_heads_and_channels_save_memory(llm, baseline):
    """A quarter of the blocks' weights is gone from memory.

    Without fine-tuning the answers are, too: use it to train from.
    """
    candidate, ref = llm.compare(baseline, DECODE)
    assert candidate.memory.weights <= 0.85 * ref.memory.weights
    assert llm.agreement(baseline, prompts=OTHERS).perplexity_ratio >= 1.0


@pytest.mark.llmperf(strategy="fp32+magnitude:0.3")
def test_pruning_by_magnitude_fails_the_rule_of_8_bit_weights(llm, baseline):
    """The negative control: the smallest 30 % of the weights become zeros.

    This is a larger change than rounding all of them to 8 bits.
    """
    assert not llm.agreement(baseline, prompts=OTHERS, rule=EIGHT_BIT).ok
