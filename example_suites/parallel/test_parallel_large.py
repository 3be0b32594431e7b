"""Architectures of 30 and 40 billion weights over two GPUs.

Their weights are random and in no file, so nothing is asked of their answers, and what cuts them is
this package's code (`own-tp2`): with a checkpoint of your own take `tp2`, which is transformers'.
"""

import pytest

from pytest_llmperf import Decode
from pytest_llmperf.units import GB

pytestmark = [
    pytest.mark.llmperf(model="arch:falcon-40b", device="cuda", budget=15),
    pytest.mark.llmperf_gpus(2),
]

SHORT = Decode(batch=1, prompt_tokens=8, new_tokens=16)
LLAMA = pytest.mark.llmperf(model="arch:llama-30b")


@pytest.mark.llmperf(strategy="bf16+fsdp2")
def test_fsdp_fits_each_device_with_half_of_the_model(llm):
    """For each token every rank gathers all layers: it fits, and is slow."""
    run = llm.run(SHORT)
    assert max(gauges.peak for gauges in run.memory.ranks) <= 47 * GB
    assert run.throughput >= 0.6


@pytest.mark.llmperf(strategy="bf16+own-tp2")
def test_tensor_parallel_decodes_well_beyond_fsdp(llm, llm_factory):
    """Each device reads its half of the weights, and sends a few kilobytes a layer."""
    candidate, sharded = llm.compare(llm_factory("bf16+fsdp2"), SHORT)
    assert candidate.throughput >= 2 * sharded.throughput


@LLAMA
@pytest.mark.llmperf(strategy="bf16+own-tp2")
def test_two_devices_against_one(llm, llm_factory):
    """Eager decoding waits for the host on one device as on two; the gain is in memory."""
    candidate, single = llm.compare(llm_factory("bf16"), SHORT)
    assert candidate.throughput >= 13.7
    assert max(gauges.weights for gauges in candidate.memory.ranks) <= 0.51 * single.memory.weights


@LLAMA
@pytest.mark.llmperf(strategy="bf16+own-tp2+static-cache+compile")
def test_compiled_tensor_parallel_is_faster_than_one_device(llm, llm_factory):
    """With the host out of the way two devices read the weights in about half the time."""
    candidate, _single = llm.compare(llm_factory("bf16+static-cache+compile"), SHORT)
    assert candidate.speed_up >= 1.4
