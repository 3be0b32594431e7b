"""A user's suite, as strict type checkers see it. It is checked and never run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_llmperf import (
    Agreement,
    Batch,
    Decode,
    Estimate,
    Handle,
    Model,
    NotMeasurable,
    Prefill,
    PromptSet,
    RunResult,
    TaskSet,
    accuracy_gate,
)
from pytest_llmperf.testing import check_engine, for_any, prompts
from pytest_llmperf.units import GB, ms

pytestmark = pytest.mark.llmperf(model="smollm2-135m")


@pytest.mark.parametrize("llm", ["fp16", "bf16"], indirect=True)
def test_pays(llm: Model, baseline: Model) -> None:
    ours, ref = llm.compare(baseline, Decode(batch=1, prompt_tokens=128, new_tokens=128))
    pair: tuple[RunResult, RunResult] = llm.compare(baseline, Decode())
    assert ours.throughput >= 1.1 * ref.throughput
    assert ours.memory.weights <= 0.55 * ref.memory.weights
    assert pair[0].ttft.p95 <= 200 * ms
    assert ours.memory.peak <= 8 * GB
    agreed: Agreement = llm.agreement(baseline, prompts=PromptSet.bundled("short-chat"))
    assert agreed.ok
    assert agreed.top1 >= 0.97


def test_quantities(llm_bf16: Model) -> None:
    run: RunResult = llm_bf16.run(Prefill(batch=1, prompt_tokens=32))
    found: Estimate | NotMeasurable = run.prefill_throughput
    number: float = float(found)
    name: str = llm_bf16.strategy
    assert number > 0
    assert name
    assert run.energy.per_token <= 2.0


def test_many(llm_factory: Callable[..., Model], llmperf: Handle) -> None:
    model: Model = llm_factory("bf16+compile")
    run = model.run(Batch(prompts=PromptSet.synthetic(1), max_new_tokens=8))
    mine: RunResult = llmperf.measure(lambda: None, tokens=8)
    assert run.throughput >= mine.throughput
    answers = model.accuracy(TaskSet.from_jsonl("tasks.jsonl"))
    assert answers.accuracy >= 0.5
    assert accuracy_gate is not None
    assert check_engine is not None


@for_any(prompt=prompts(), max_examples=5)
def test_any(llm: Model, baseline: Model, prompt: str) -> None:
    ours = llm.top_tokens(prompt)
    assert ours.first in baseline.top_tokens(ours.prompt_ids, k=5)
