"""Speed and memory of a 7B architecture under each precision.

Its weights are random, so nothing is asked of its answers.
"""

import pytest

from pytest_llmperf import Decode
from pytest_llmperf.units import GB

pytestmark = pytest.mark.llmperf(model="arch:falcon-7b", budget=20)

SHORT = Decode(batch=1, prompt_tokens=8, new_tokens=50)


@pytest.fixture(autouse=True)
def gpu_only(llm_factory):
    """Skip before anything is loaded: in fp32 the model takes 28 GB."""
    if llm_factory("bf16").device != "cuda":
        pytest.skip(
            "arch:falcon-7b takes 28 GB in fp32 and is not for a CPU: "
            "run with --llmperf-device cuda"
        )


@pytest.mark.parametrize("llm", ["fp16", "bf16"], indirect=True)
def test_half_precision_halves_the_memory(llm, baseline):
    """Eager decoding gains no speed from half precision, because it waits for the host.

    The ratio is recorded, and MBU shows why.
    """
    candidate, ref = llm.compare(baseline, SHORT)
    assert candidate.memory.weights <= 0.505 * ref.memory.weights
    assert candidate.memory.peak <= 14.5 * GB
    assert candidate.memory.peak <= 0.52 * ref.memory.peak


@pytest.mark.llmperf(strategy="bf16-mixed")
def test_mixed_precision_saves_no_memory(llm, baseline):
    """The weights stay in fp32, and autocast keeps 16-bit copies beside them."""
    candidate, ref = llm.compare(baseline, SHORT)
    assert candidate.memory.weights >= 0.99 * ref.memory.weights
    assert candidate.memory.peak >= 0.99 * ref.memory.peak


@pytest.mark.llmperf(strategy="bf16+static-cache+compile")
def test_compiled_decoding_uses_the_memory_bandwidth(llm, baseline):
    """With the host out of the way, decoding is a matter of reading the weights.

    It reaches at least two thirds of the copy bandwidth.
    """
    candidate, ref = llm.compare(baseline, SHORT)
    assert candidate.throughput >= 3 * ref.throughput
    assert candidate.mbu >= 0.66
