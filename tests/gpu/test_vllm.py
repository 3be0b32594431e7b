"""The vLLM engine on GPUs, in the interpreter that LLMPERF_VLLM_PYTHON names, or in this one."""

from __future__ import annotations

import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.wire.commands import CompareReference, Describe, MakeReference, Run
from pytest_llmperf.workloads import Batch, Decode, PromptSet

pytestmark = pytest.mark.gpu

SHORT = Decode(batch=1, prompt_tokens=8, new_tokens=50)


def plan(strategy: str, model: str = "arch:tiny-llama", **options) -> LoadPlan:
    options = {"kv_cache_gib": 2} | options
    return parse(strategy).apply(
        LoadPlan(
            model=model_ref(model),
            engine="vllm",
            device="cuda",
            options=tuple(sorted(options.items())),
        ),
    )


def tok_per_s(trace) -> float:
    last = max(request.events[-1].t_ns for request in trace.requests)
    return (
        sum(r.n_output_tokens for r in trace.requests)
        / (last - min(r.t_due_ns for r in trace.requests))
        * 1e9
    )


def best(group, workload, times: int = 5) -> float:
    return max(
        tok_per_s(group.call(Run(workload=workload, repetition=i), deadline_s=300).run.trace)
        for i in range(times)
    )


@pytest.mark.parametrize(
    "strategy", ["fp32", "fp16", "bf16", "bf16+compile", "bf16+kv-fp8", "bf16+prompt-lookup"]
)
def test_each_strategy_is_in_effect(strategy, open_worker):
    """Its promises hold after loading and after a run."""
    wanted = plan(strategy)
    with open_worker(wanted) as (group, _):
        group.call(Run(workload=SHORT, repetition=0), deadline_s=120)
        found = group.call(Describe(), deadline_s=60).description
    require_in_effect(found.effective, parse(strategy).promises(wanted), "warm")


def test_it_agrees_with_transformers_on_the_same_weights(tmp_path, open_worker):
    """A small architecture is written out: in fp32 the logits differ by rounding alone."""
    reference = tmp_path / "reference"
    prompts = PromptSet.synthetic(1)
    theirs = parse("fp32").apply(LoadPlan(model=model_ref("arch:tiny-llama"), device="cpu"))
    with open_worker(theirs) as (group, _):
        group.call(
            MakeReference(prompts=prompts, new_tokens=8, batch=4, path=str(reference)),
            deadline_s=120,
        )
    with open_worker(plan("fp32")) as (group, _):
        rows = group.call(CompareReference(path=str(reference), batch=4), deadline_s=120).prompts
    assert max(max(row.kl) for row in rows) < 1e-5


def test_a_7b_architecture_decodes_as_fast_as_a_plain_script(open_worker):
    """195 tok/s at batch 1 on an H200."""
    with open_worker(plan("bf16", "arch:falcon-7b", kv_cache_gib=10), deadline_s=600) as (group, _):
        assert best(group, SHORT) >= 195


def test_256_prompts_go_through_as_fast_as_in_a_plain_script(open_worker):
    """18,000 tok/s on an H200, 128 in and 128 out."""
    work = Batch(requests=256, prompt_tokens=128, max_new_tokens=128)
    with open_worker(plan("bf16", "arch:falcon-7b", kv_cache_gib=40), deadline_s=600) as (group, _):
        assert best(group, work, 4) >= 18_000


@pytest.mark.parametrize(
    ("model", "work", "least"),
    [
        ("arch:llama-30b", Decode(batch=3, prompt_tokens=8, new_tokens=16), 3 * 16 / 0.185),
        ("arch:falcon-40b", SHORT, 79.0),
    ],
)
def test_tensor_parallel_over_two_gpus(model, work, least, open_worker):
    """A plain script's figures on two H200s."""
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    wanted = plan("bf16+tp2", model, kv_cache_gib=10)
    with open_worker(wanted, deadline_s=600) as (group, _):
        require_in_effect(
            group.call(Describe(), deadline_s=60).description.effective,
            parse("bf16+tp2").promises(wanted),
            "loaded",
        )
        assert best(group, work) >= least
