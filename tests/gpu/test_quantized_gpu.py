"""Quantized models on a CUDA device: in effect, in the bytes of their shapes.

They need no more memory than that, and are faster than bf16.
"""

from __future__ import annotations

import gc
import statistics

import pytest
from msgspec import structs

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.capabilities import TRANSFORMERS
from pytest_llmperf.engines.models.names import model_ref, predict
from pytest_llmperf.errors import NotInEffect
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.testing import check_engine
from pytest_llmperf.workloads import Decode

pytestmark = pytest.mark.gpu

FALCON = "arch:falcon-7b"
SHARES = {
    "bf16+int8": 0.55,
    "bf16+nf4": 0.33,
    "bf16+fp4": 0.33,
    "bf16+nf4:double": 0.33,
    "bf16+int8wo": 0.55,
    "bf16+int4wo": 0.35,
    "bf16+fp8": 0.55,
}
"""Strategy -> largest share of the bytes of bf16."""

COMPILED = "+static-cache+compile"
FAST = {8: ["bf16+int8wo", "bf16+fp8", "bf16+fp8:wo"], 4: ["bf16+int4wo", "bf16+nf4"]}
DECODE = Decode(batch=1, prompt_tokens=8, new_tokens=64)


def plan(strategy, model="arch:tiny-llama", **options):
    """A plan on the first GPU."""
    made = parse(strategy).apply(LoadPlan(model=model_ref(model), device="cuda"))
    return structs.replace(made, options=tuple(options.items()))


def need(asked):
    """Skip where the library is not installed or the GPU lacks the kernels, and say which."""
    reason = TRANSFORMERS.missing_library(asked) or TRANSFORMERS.refusal(asked)
    if reason:
        pytest.skip(reason)
    return asked


def opened(asked):
    """A session; its promises hold."""
    from pytest_llmperf.engines.transformers import TransformersEngine

    gc.collect()
    session = TransformersEngine().open(need(asked))
    require_in_effect(session.describe().effective, parse(asked.strategy).promises(asked), "loaded")
    return session


@pytest.mark.parametrize(
    "strategy", ["bf16+int8", "bf16+nf4:double", "fp16+fp4", "bf16+int8wo", "bf16+fp8:wo"]
)
def test_the_engine_passes_the_conformance_checks(strategy, tmp_path):
    """The checks any engine must pass, with quantized layers."""
    from pytest_llmperf.engines.transformers import TransformersEngine

    check_engine(TransformersEngine(), need(plan(strategy)), directory=tmp_path)


@pytest.mark.parametrize("strategy", SHARES)
def test_a_falcon_7b_shrinks_to_the_bytes_of_its_shapes(strategy):
    """Every layer but the head, within 3 % of what follows from the shapes.

    Loading holds little more than the result.
    """
    import torch

    asked = need(plan(strategy, FALCON))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    session = opened(asked)
    effective, peak = session.describe().effective, torch.cuda.max_memory_allocated() - before
    session.close()
    full = predict(plan("bf16", FALCON))
    held = effective.weights_bytes
    sizes = f"{held / 1e9:.2f} GB, {held / full:.3f} of bf16, peak {peak / 1e9:.2f} GB"
    print(f"{strategy}: {sizes}")  # noqa: T201
    assert effective.quantized.converted == 128
    assert effective.quantized.loaded_as_linear == {"FalconLinear": 128}
    assert effective.weights_bytes == pytest.approx(predict(asked), rel=0.03)
    assert effective.weights_bytes <= SHARES[strategy] * full
    # One layer in float32 and in bfloat16, and the head before it is tied.
    assert peak <= effective.weights_bytes + 3e9


@pytest.mark.parametrize("strategy", ["bf16+int8", "bf16+nf4", "bf16+int8wo"])
def test_a_falcon_that_is_left_as_it_is_is_an_error(strategy):
    """The negative control."""
    from pytest_llmperf.engines.transformers import TransformersEngine

    asked = need(plan(strategy, "arch:tiny-falcon", load_as_linear=False))
    session = TransformersEngine().open(asked)
    effective = session.describe().effective
    session.close()
    with pytest.raises(NotInEffect, match=r"0 of 8 linear layers are .-bit \(8 FalconLinear"):
        require_in_effect(effective, parse(strategy).promises(asked), "loaded")


@pytest.mark.parametrize(
    "strategy", [f"{name}{COMPILED}" for names in FAST.values() for name in names]
)
def test_compiled_decoding_of_quantized_weights_runs_as_one_cuda_graph(strategy):
    """Compiled, recorded, and the same tokens twice."""
    asked = need(plan(strategy, "arch:small-llama"))
    session = opened(asked)
    hashes = {session.run(DECODE, 0).outputs_hash for _ in range(2)}
    effective = session.describe().effective
    session.close()
    require_in_effect(effective, parse(strategy).promises(asked), "warm")
    assert len(hashes) == 1
    assert not effective.notes


@pytest.mark.parametrize("bits", FAST)
def test_a_quantized_falcon_7b_decodes_faster_than_bf16_at_batch_1(bits):
    """At least one strategy of each width, compiled on both sides; each ratio is printed."""
    reference = decode_tok_per_s(f"bf16{COMPILED}")
    ratios = {
        strategy: decode_tok_per_s(f"{strategy}{COMPILED}") / reference for strategy in FAST[bits]
    }
    print(  # noqa: T201
        f"{bits} bit against bf16 ({reference:.1f} tok/s): "
        f"{ {name: round(ratio, 3) for name, ratio in ratios.items()} }"
    )
    assert max(ratios.values()) > 1.0


def decode_tok_per_s(strategy, repetitions=7):
    """Median over repetitions, after three to warm up; 0 where the strategy cannot be had here."""
    from pytest_llmperf.core.metrics.offline import reduce
    from pytest_llmperf.engines.transformers import TransformersEngine

    asked = plan(strategy, FALCON)
    if TRANSFORMERS.missing_library(asked) or TRANSFORMERS.refusal(asked):
        return 0.0
    session = TransformersEngine().open(asked)
    try:
        traces = [session.run(DECODE, i).trace for i in range(3 + repetitions)][3:]
    finally:
        session.close()
    return statistics.median(float(reduce([trace], DECODE).decode_throughput) for trace in traces)
