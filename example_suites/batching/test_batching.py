"""Static against continuous batches on the real model, and two engines on equal work.

The engines are transformers and vLLM.
"""

import pytest

from pytest_llmperf import Batch, Decode, PromptSet
from pytest_llmperf.units import s

pytestmark = pytest.mark.llmperf(model="smollm2-135m", strategy="fp32", budget=40)

MIXED = Batch(
    prompts=PromptSet.synthetic(0),
    requests=12,
    prompt_tokens=(8, 48),
    max_new_tokens=(4, 48),
    batch=6,
)


def test_static_batches_compute_much_that_nobody_asked_for(llm):
    """Padding before the prompts, and steps after a sequence's own end."""
    run = llm.run(MIXED)
    assert run.padding >= 0.25
    assert run.throughput <= run.total_throughput


def test_transformers_continuous_against_static(llm, llm_factory):
    """No padding.

    What its loop costs in Python is another matter, and the ratio says which is larger here.
    """
    continuous, static = llm_factory("fp32+continuous").compare(llm, MIXED)
    assert continuous.padding <= 0.02
    assert continuous.throughput >= 0.5 * static.throughput


def test_vllm_against_static_batches(llm, llm_factory, vllm):
    """The same prompts, lengths and token counts; equal answers."""
    candidate, static = llm_factory("fp32", engine=vllm).compare(llm, MIXED)
    assert candidate.throughput >= 1.0 * static.throughput


SERVER = pytest.mark.llmperf(
    options={"args": "--enforce-eager --max-model-len 512 --max-num-seqs 8"}
)


@pytest.mark.parametrize(
    "engine", ["transformers", "vllm", pytest.param("server:vllm", marks=SERVER)]
)
def test_engines_on_equal_work(request, llm_factory, baseline, engine):
    """One test for each engine, on equal prompts and lengths.

    The summary says which was fastest, with its agreement.
    """
    if engine != "transformers":
        request.getfixturevalue("vllm" if engine == "vllm" else "vllm_server")
    llm = llm_factory("fp32", engine=engine)
    run = llm.run(Decode(batch=4, prompt_tokens=32, new_tokens=16))
    if llm.device == "cpu":
        assert run.cpu_time_per_token <= 1 * s
    else:
        assert run.throughput >= 1
    agreement = llm.agreement(
        baseline, new_tokens=16, rule="containment(k=5, horizon=32)+perplexity(1.01)"
    )
    assert agreement.ok
    assert agreement.top1 >= 0.97
