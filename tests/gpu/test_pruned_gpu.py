"""Pruning on a CUDA device: 2:4 on sparse tensor cores, and a 7B model in one GPU's memory."""

from __future__ import annotations

import statistics
import sys

import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.workloads import Decode, Prefill

pytestmark = pytest.mark.gpu

GB = 10**9


def opened(strategy: str, model: str):
    """A session on the first GPU, its promises checked."""
    from pytest_llmperf.engines.transformers import TransformersEngine

    plan = parse(strategy).apply(LoadPlan(model=model_ref(model), device="cuda"))
    session = TransformersEngine().open(plan)
    require_in_effect(session.opened().effective, parse(strategy).promises(plan), "loaded")
    return session


def seconds(session, workload, repetitions: int = 12) -> float:
    """Median time of a run, from when it was due to its last token; the first two are warm-up."""
    traces = [session.run(workload, i).trace for i in range(repetitions)]
    times = [t.requests[0].events[-1].t_ns - t.requests[0].t_due_ns for t in traces[2:]]
    return statistics.median(times) / 1e9


def test_two_of_four_weights_multiply_on_sparse_tensor_cores():
    """The compressed layer gives the product of the dense one, and stores 9/16 of its bytes."""
    import torch

    from pytest_llmperf.engines.transformers.prune import masks, semi_structured

    kind = semi_structured.backend(torch.device("cuda", 0))
    assert not isinstance(kind, str), kind
    layer = torch.nn.Linear(
        1024, 2048, bias=False, dtype=torch.bfloat16, device="cuda"
    ).requires_grad_(requires_grad=False)
    layer.weight.data.masked_fill_(masks.n_of_m(layer.weight.data.float().abs(), 2, 4), 0)
    dense = layer.weight.data.clone()
    compressed = kind.from_dense(dense)
    x = torch.randn(3, 7, 1024, dtype=torch.bfloat16, device="cuda")
    torch.testing.assert_close(
        torch.nn.functional.linear(x, compressed),
        torch.nn.functional.linear(x, dense),
        atol=0.05,
        rtol=0.05,
    )
    held = sum(getattr(compressed, name).nbytes for name in compressed.__tensor_flatten__()[0])
    assert held == pytest.approx(dense.nbytes * 9 / 16, rel=0.01)


@pytest.mark.parametrize("extra", ["", "+static-cache+compile"])
def test_a_7b_model_runs_compressed(extra, record_property, capsys):
    """All its linear layers are stored 2:4.

    What that does to the speed of prefill and decode is printed, not claimed.
    """
    strategies = {"dense": f"bf16{extra}", "2:4": f"bf16+magnitude:2:4{extra}"}
    work = {
        "decode b1": Decode(batch=1, prompt_tokens=8, new_tokens=32),
        "prefill b8": Prefill(batch=8, prompt_tokens=512),
    }
    took, weights = {}, {}
    for name, strategy in strategies.items():
        session = opened(strategy, "arch:falcon-7b")
        took[name] = {label: seconds(session, workload) for label, workload in work.items()}
        found = session.describe().effective
        weights[name] = found.weights_bytes
        session.close()
    assert found.pruned.stored == "2:4 compressed"
    assert "128 of 128 linear layers run on sparse tensor cores" in found.notes[-1]
    assert weights["2:4"] <= 0.60 * weights["dense"]
    ratios = {label: took["dense"][label] / took["2:4"][label] for label in work}
    ratios["bytes"] = weights["2:4"] / weights["dense"]
    with capsys.disabled():
        sys.stdout.write(
            f"\nfalcon-7b{extra}: 2:4 against dense: speed and bytes {ratios}; {found.notes}; "
            f"seconds {took}\n"
        )
    record_property("ratios", ratios)


@pytest.mark.parametrize(
    "strategy", ["bf16+wanda:0.5", "bf16+wanda:2:4", "bf16+sparsegpt:0.5", "bf16+structured:0.25"]
)
def test_a_7b_model_is_pruned_on_one_gpu(strategy, capsys):
    """In effect, in a minute or two, with at most 30 GB beside the weights, all given back."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    session = opened(strategy, "arch:falcon-7b")
    peak = torch.cuda.max_memory_allocated()
    found = session.describe().effective
    with capsys.disabled():
        sys.stdout.write(
            f"\n{strategy}: peak {peak / GB:.1f} GB, "
            f"weights {found.weights_bytes / GB:.2f} GB, {found.pruned}\n"
        )
    assert peak <= 45 * GB
    session.run(Decode(batch=1, prompt_tokens=8, new_tokens=4), 0)
    session.close()
    assert torch.cuda.memory_allocated() <= GB


def test_pruned_weights_are_quantized_afterwards():
    """Prune, then quantize: both promises hold."""
    pytest.importorskip("bitsandbytes")
    session = opened("bf16+wanda:0.5+int8", "arch:falcon-7b")
    found = session.describe().effective
    assert found.quantized is not None
    assert found.sparsity == pytest.approx(0.5, abs=0.005)
    session.close()
