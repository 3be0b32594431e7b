"""Memory and speed of a 7B architecture in 8 and 4 bits.

Its weights are random, so nothing is asked of its answers.
"""

import pytest

from pytest_llmperf import Decode

# Skipped where no GPU is seen, before anything is loaded.
pytestmark = [
    pytest.mark.llmperf(model="arch:falcon-7b", device="cuda", budget=20),
    pytest.mark.llmperf_gpus(1),
]

SHORT = Decode(batch=1, prompt_tokens=8, new_tokens=50)
COMPILED = "static-cache+compile"


@pytest.mark.parametrize(
    ("llm", "share"),
    [
        ("bf16+int8", 0.55),
        ("bf16+int8wo", 0.55),
        ("bf16+fp8", 0.55),
        ("bf16+nf4", 0.33),
        ("bf16+fp4", 0.33),
        ("bf16+int4wo", 0.35),
    ],
    indirect=["llm"],
)
def test_quantized_weights_shrink_to_what_follows_from_the_shapes(llm, share, llm_factory):
    """All 128 linear layers of the blocks.

    Eager decoding gains no speed from it, because it waits for the host.
    """
    candidate, ref = llm.compare(llm_factory("bf16"), SHORT)
    assert candidate.memory.weights <= share * ref.memory.weights
    assert llm.effective.quantized.converted == 128


@pytest.mark.parametrize(
    "llm",
    [f"bf16+{part}+{COMPILED}" for part in ("int8wo", "fp8:wo", "fp8", "int4wo", "nf4")],
    indirect=True,
)
def test_compiled_decoding_of_quantized_weights_against_bf16(llm, llm_factory):
    """How fast each one is, as a paired ratio: recorded, nothing is claimed."""
    llm.compare(llm_factory(f"bf16+{COMPILED}"), SHORT)


@pytest.mark.parametrize(
    ("llm", "times"),
    [(f"bf16+int8wo+{COMPILED}", 1.0), (f"bf16+int4wo+{COMPILED}", 1.2)],
    indirect=["llm"],
)
def test_fewer_bytes_decode_faster_once_the_host_is_out_of_the_way(llm, times, llm_factory):
    """One 8-bit and one 4-bit strategy beat compiled bf16 at batch 1, by the time between tokens.

    Output throughput counts the first token too, whose prefill unpacks the weights: it may gain
    nothing in a short run.
    """
    candidate, ref = llm.compare(llm_factory(f"bf16+{COMPILED}"), SHORT)
    assert candidate.decode_throughput >= times * ref.decode_throughput
