"""A 7B architecture on a GPU. Its weights are random, so nothing is asked of its answers."""

import pytest

from pytest_llmperf import Batch, Decode, PromptSet

pytestmark = [
    pytest.mark.llmperf(
        model="arch:falcon-7b", device="cuda", budget=60, options={"kv_cache_gib": 20}
    ),
    pytest.mark.llmperf_gpus(1),
]

MANY = Batch(
    prompts=PromptSet.synthetic(0), requests=256, prompt_tokens=128, max_new_tokens=128, batch=32
)


def test_vllm_decodes_alone(llm_factory, vllm):
    """A plain script reached 195 tok/s on an H200."""
    run = llm_factory("bf16", engine=vllm).run(Decode(batch=1, prompt_tokens=8, new_tokens=50))
    assert run.throughput >= 195


def test_vllm_on_many_prompts(llm_factory, vllm):
    """A plain script reached 18,000 tok/s on an H200."""
    run = llm_factory("bf16", engine=vllm).run(MANY)
    assert run.throughput >= 18_000


def test_continuous_over_static_batches(llm_factory, vllm):
    """VLLM's published factor over static Hugging Face batches is 14 to 24."""
    candidate, static = llm_factory("bf16", engine=vllm).compare(llm_factory("bf16"), MANY)
    assert candidate.throughput >= 14 * static.throughput
    assert candidate.throughput <= 24 * static.throughput
