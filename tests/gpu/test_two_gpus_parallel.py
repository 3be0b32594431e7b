"""Two ranks over NCCL: parts, tokens of one device, compiled decoding, the share of collectives.

Weights on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.agreement.rules import default_rule
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.devices.placement import gpu_count
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.wire.commands import (
    CompareReference,
    Describe,
    MakeReference,
    Open,
    ReadCollectives,
    ReadMemory,
    Run,
)
from pytest_llmperf.workers.group import WorkerGroup
from pytest_llmperf.workers.ranks import Ranks
from pytest_llmperf.workloads import Decode, PromptSet

pytestmark = pytest.mark.gpu
two_gpus = pytest.mark.skipif(gpu_count() < 2, reason="needs two GPUs")

WORK = Decode(batch=2, prompt_tokens=16, new_tokens=32)
DEADLINE_S = 120.0


def plan_of(strategy: str) -> LoadPlan:
    return parse(strategy).apply(LoadPlan(model=model_ref("arch:small-llama"), device="cuda"))


@contextmanager
def opened(strategy: str, logs: Path) -> Iterator[Ranks]:
    """The ranks of a plan, with their model loaded and its promises kept."""
    plan = plan_of(strategy)
    with WorkerGroup.start(ranks=plan.ranks, log_dir=logs, name=strategy) as group:
        ranks = Ranks(group, plan)
        found = ranks.call(Open(plan=plan), deadline_s=DEADLINE_S).facts
        require_in_effect(found.effective, parse(strategy).promises(plan), when="loaded")
        yield ranks


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Logits of the model on one GPU."""
    folder = tmp_path_factory.mktemp("reference")
    path = str(folder / "reference.safetensors")
    with opened("fp32", folder) as alone:
        alone.call(
            MakeReference(prompts=PromptSet.synthetic(), new_tokens=16, batch=4, path=path),
            deadline_s=DEADLINE_S,
        )
    return path


@two_gpus
@pytest.mark.parametrize(
    "strategy",
    [
        "fsdp2",
        "own-pp2",
        "dp2",
        *("tp2", "tp2+static-cache", "tp2+static-cache+compile", "tp2+compile"),
        *("own-tp2", "own-tp2+static-cache", "own-tp2+static-cache+compile", "own-tp2+compile"),
    ],
)
def test_two_gpus_answer_as_one(strategy, reference, tmp_path):
    """Each rank has a GPU of its own, with its share of the bytes; promises hold after a run."""
    strategy = f"fp32+{strategy}"
    plan = plan_of(strategy)
    with opened(strategy, tmp_path) as ranks:
        for repetition in range(2):
            ran = ranks.call(Run(workload=WORK, repetition=repetition), deadline_s=DEADLINE_S).run
        effective = ranks.call(Describe(), deadline_s=DEADLINE_S).description.effective
        require_in_effect(effective, parse(strategy).promises(plan), when="warm")
        assert len({shard.device for shard in effective.shards}) == 2
        assert {shard.backend for shard in effective.shards} == {"nccl"}
        assert len(ran.trace.requests) == WORK.batch
        gauges = ranks.call(ReadMemory(workload=WORK, repetition=2), deadline_s=DEADLINE_S).ranks
        assert all(each.peak is not None and each.peak > each.weights for each in gauges)
        rows = ranks.call(CompareReference(path=reference, batch=4), deadline_s=DEADLINE_S).prompts
        agreement = Agreement(rows, rule=default_rule(plan, plan_of("fp32")))
        assert agreement.ok


@two_gpus
def test_the_share_of_collectives_is_read_from_the_profiler(tmp_path):
    """Some of the time, and not all of it."""
    with opened("bf16+tp2", tmp_path) as ranks:
        ranks.call(Run(workload=WORK, repetition=0), deadline_s=DEADLINE_S)
        found = ranks.call(ReadCollectives(workload=WORK, repetition=1), deadline_s=DEADLINE_S)
        assert found.share is not None, found.reason
        assert 0.0 < found.share < 1.0


def test_weights_on_the_host_leave_the_gpu_to_one_layer(tmp_path):
    """Only small tables are on the GPU between steps, and a run needs less than the whole model."""
    with opened("fp32", tmp_path) as whole:
        tokens = whole.call(
            Run(workload=WORK, repetition=0), deadline_s=DEADLINE_S
        ).run.outputs_hash
        weights = whole.call(Describe(), deadline_s=DEADLINE_S).description.effective.weights_bytes
    with opened("fp32+offload-cpu", tmp_path) as ranks:
        assert (
            ranks.call(Run(workload=WORK, repetition=0), deadline_s=DEADLINE_S).run.outputs_hash
            == tokens
        )
        memory = ranks.call(ReadMemory(workload=WORK, repetition=1), deadline_s=DEADLINE_S).memory
        assert memory.weights < 0.01 * weights
        assert memory.peak < 0.9 * weights
