"""`vllm serve` on a GPU, as a child of the worker.

It is $LLMPERF_SERVER_VLLM, or the command beside this interpreter.
"""

from __future__ import annotations

import pytest

from pytest_llmperf.core.metrics.serving import client_mark, reduce_serving
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.wire.commands import RunServing
from pytest_llmperf.workloads import Serve

pytestmark = pytest.mark.gpu

LINES = Serve(concurrency=16, requests=96, prompt_tokens=128, max_new_tokens=128)


def plan(model: str, device: str = "cuda", **options) -> LoadPlan:
    base = LoadPlan(
        model=model_ref(model),
        engine="server:vllm",
        device=device,
        options=tuple(sorted(options.items())),
    )
    return parse("bf16").apply(base)


def loaded(channel, work: Serve, repetition: int = 0):
    """The quantities of one run of a load; the client was not its limit."""
    served = channel.call(RunServing(workload=work, repetition=repetition), deadline_s=300).run
    assert client_mark(served.trace, 0.0) is None
    return reduce_serving([served.trace], work)


@pytest.mark.parametrize(
    ("model", "least_tok_per_s"), [("smollm2-135m", 2000), ("arch:falcon-7b", 1500)]
)
def test_sixteen_lines_are_served(model, least_tok_per_s, open_worker):
    """In the dtype asked for, without a failed request, and with exactly the tokens asked for."""
    wanted = plan(model)
    with open_worker(wanted, deadline_s=900) as (channel, opened):
        require_in_effect(opened.effective, parse("bf16").promises(wanted), "loaded")
        channel.call(RunServing(workload=LINES, repetition=1), deadline_s=300)  # warms up
        run = loaded(channel, LINES)
        one = loaded(
            channel, Serve(concurrency=1, requests=5, prompt_tokens=8, max_new_tokens=50), 2
        )
    print(  # noqa: T201
        f"{model}: {run.throughput}, {run.ttft.p50}, {run.tpot.p50}; "
        f"alone {one.throughput}, {one.tpot.p50}"
    )
    assert run.n_failed == one.n_failed == 0
    assert run.throughput.value >= least_tok_per_s
    assert one.tpot.p50.value <= run.tpot.p50.value
