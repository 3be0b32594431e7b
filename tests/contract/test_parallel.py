"""Two ranks over gloo: each strategy holds its part of the model, and answers as one device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.agreement.rules import default_rule
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.engines.transformers import TransformersEngine
from pytest_llmperf.errors import (
    LoadError,
    NotInEffect,
    UsageError,
    WorkerDied,
    WorkerError,
    WorkerHung,
)
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.wire.commands import (
    CompareReference,
    Describe,
    Open,
    ReadEnergy,
    ReadMemory,
    ReadTopTokens,
    Run,
)
from pytest_llmperf.workers.group import WorkerGroup
from pytest_llmperf.workers.ranks import Ranks
from pytest_llmperf.workloads import Decode, PromptSet

WORK = Decode(batch=2, prompt_tokens=8, new_tokens=10)
DEADLINE_S = 120.0
COMPILED = "+static-cache+compile"
FAULTY = (str(Path(__file__).parents[1] / "support" / "faulty_rank.py"),)

Start = Callable[..., Ranks]


def plan_of(strategy: str, *, model: str = "tiny-llama") -> LoadPlan:
    return parse(strategy).apply(
        LoadPlan(model=ModelRef(name=f"arch:{model}", kind="arch", location=model))
    )


@contextmanager
def ranks_of(plan: LoadPlan, logs: Path, fault: str = "") -> Iterator[Ranks]:
    program = {"program": FAULTY} if fault else {"fork_engine": "transformers"}
    env = {"OMP_NUM_THREADS": "1", "FAULT": fault}
    with WorkerGroup.start(
        ranks=plan.ranks,
        log_dir=logs,
        name=plan.strategy,
        env=env,
        python=sys.executable,
        **program,
    ) as group:
        yield Ranks(group, plan)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """Start the ranks of a plan; they end with the test."""
    with ExitStack() as stack:
        yield lambda plan, fault="": stack.enter_context(ranks_of(plan, tmp_path, fault))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory):
    """The model on one device: its bytes, and a reference file.

    It also has its outputs' hash for two and for four prompts.
    """
    session = TransformersEngine().open(plan_of("fp32"))
    path = str(tmp_path_factory.mktemp("reference") / "reference.safetensors")
    session.make_reference(PromptSet.synthetic(), 8, 4, path)
    ran = session.run(WORK, 0)
    yield ran, session.opened().effective.weights_bytes, path
    session.close()


TWO = """import os, sys
import torch.distributed as dist
from pytest_llmperf.instruments import ranks
if sys.argv[3] == "elsewhere":
    ranks._namespace = lambda: int(sys.argv[2])
dist.init_process_group("gloo", init_method=sys.argv[1], rank=int(sys.argv[2]), world_size=2)
print(os.getpid(), *ranks.ranks_on_this_host())
dist.destroy_process_group()
"""


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_ranks_know_those_of_their_own_host(tmp_path, where):
    """Their CPU time is no foreign load of each other.

    A process of that number on another host is somebody else.
    """
    command = [sys.executable, "-c", TWO, f"file://{tmp_path}/store"]
    both = [
        subprocess.Popen([*command, str(rank), where], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    (one, *its), (other, *others) = (
        rank.communicate(timeout=DEADLINE_S)[0].split() for rank in both
    )
    assert (its, others) == (([other], [one]) if where == "here" else ([], []))


@pytest.mark.parametrize("strategy", ["tp2", "own-tp2", "fsdp2", "own-pp2", "dp2"])
def test_two_ranks_hold_their_parts_and_answer_as_one_device(start: Start, alone, strategy):
    """Promises hold, bytes are the split's, tokens and agreement are those of the single device."""
    ran, whole_bytes, reference = alone
    plan = plan_of(f"fp32+{strategy}")
    ranks = start(plan)
    opened = ranks.call(Open(plan=plan), deadline_s=DEADLINE_S).facts
    require_in_effect(opened.effective, parse(plan.strategy).promises(plan), when="loaded")
    held = [shard.bytes for shard in opened.effective.shards]
    assert {shard.whole_bytes for shard in opened.effective.shards} == {whole_bytes}
    assert max(held) <= (whole_bytes if strategy == "dp2" else 0.51 * whole_bytes)

    first = ranks.call(Run(workload=WORK, repetition=0), deadline_s=DEADLINE_S).run
    assert len(first.trace.requests) == WORK.batch
    if strategy != "dp2":
        assert (first.prompts_hash, first.outputs_hash) == (ran.prompts_hash, ran.outputs_hash)
        assert first.step.flops_per_token == ran.step.flops_per_token
        assert first.step.kv_bytes_per_token == ran.step.kv_bytes_per_token
    gauges = ranks.call(ReadMemory(workload=WORK, repetition=1), deadline_s=DEADLINE_S)
    assert [each.weights for each in gauges.ranks] == held
    assert gauges.memory.weights == sum(held)
    ranks.call(ReadEnergy(workload=WORK, repetition=2, seconds=0.1), deadline_s=DEADLINE_S)

    agreement = compared(ranks, plan, reference)
    assert agreement.ok, agreement.reasons
    assert agreement.rule.kind == "parallel"
    assert ranks.call(ReadTopTokens(prompt=(5, 6, 7), k=3), deadline_s=DEADLINE_S).top
    assert (
        ranks.call(Describe(), deadline_s=DEADLINE_S).description.effective.cache == "DynamicCache"
    )
    if strategy == "dp2":
        with pytest.raises(
            UsageError, match=r"a batch of 3 cannot be divided over the 2 replicas of dp2.*batch=4"
        ):
            ranks.call(
                Run(workload=Decode(batch=3, prompt_tokens=4, new_tokens=2), repetition=0),
                deadline_s=DEADLINE_S,
            )
        assert ranks.alive


def compared(ranks: Ranks, plan: LoadPlan, reference: str) -> Agreement:
    rows = ranks.call(CompareReference(path=reference, batch=4), deadline_s=DEADLINE_S).prompts
    return Agreement(rows, rule=default_rule(plan, plan_of("fp32")))


def test_tensor_and_pipeline_parallel_together_are_four_ranks(start: Start, alone):
    """The grid's axes are independent: each of two stages is cut in two."""
    ran, whole_bytes, _ = alone
    plan = plan_of("fp32+own-tp2+own-pp2")
    ranks = start(plan)
    opened = ranks.call(Open(plan=plan), deadline_s=DEADLINE_S).facts
    require_in_effect(opened.effective, parse(plan.strategy).promises(plan), when="loaded")
    assert max(shard.bytes for shard in opened.effective.shards) < 0.26 * whole_bytes
    assert (
        ranks.call(Run(workload=WORK, repetition=0), deadline_s=DEADLINE_S).run.outputs_hash
        == ran.outputs_hash
    )


def test_a_zeroed_shard_is_seen_by_the_agreement_and_a_hang_shows_every_rank(start: Start, alone):
    """Rank 1 lost its part of the row-cut matrices.

    Later it hangs, and rank 0 waits for it in a collective.
    """
    plan = plan_of("fp32+own-tp2")
    ranks = start(plan, "zero+hang")
    ranks.call(Open(plan=plan), deadline_s=DEADLINE_S)
    assert not compared(ranks, plan, alone[2]).ok
    stacks = r"(?s)stacks of rank 0.*all_reduce.*stacks of rank 1.*faulty_rank\.py"
    fails(ranks, WorkerHung, stacks, deadline_s=4.0)


def test_a_full_load_on_each_rank_breaks_the_promise_and_a_failing_rank_is_named(start: Start):
    """Nothing was cut: each rank's bytes are in the error.

    Later rank 1 raises, and its traceback is shown.
    """
    plan = plan_of("fp32+own-tp2")
    ranks = start(plan, "whole+raise")
    opened = ranks.call(Open(plan=plan), deadline_s=DEADLINE_S).facts
    with pytest.raises(
        NotInEffect,
        match=r"'own-tp2' is not in effect.*rank 0 0\.608 MB \(at most 0\.310\), rank 1 0\.608 MB",
    ):
        require_in_effect(opened.effective, parse(plan.strategy).promises(plan), when="loaded")
    fails(
        ranks, WorkerError, r"rank 1 of 2 .*failed in Run: ArithmeticError: rank 1 has miscounted"
    )


@pytest.mark.parametrize(
    ("strategy", "fault", "reason"),
    [
        (
            "tp2",
            "swap",
            r"carried out by pytest-llmperf, not by the library of engine 'transformers'",
        ),
        ("own-tp2", "swap", r"carried out by transformers 5[.\d]+, not by pytest-llmperf"),
        ("tp2", "unplanned", r"32 matrices are larger than their shares.*carried out by nobody"),
    ],
)
def test_tensor_parallelism_by_other_code_is_not_in_effect(start: Start, strategy, fault, reason):
    """The promise names who carries it out, as the loaded modules show it."""
    plan = plan_of(f"fp32+{strategy}")
    ranks = start(plan, fault)
    opened = ranks.call(Open(plan=plan), deadline_s=DEADLINE_S).facts
    with pytest.raises(NotInEffect, match=f"'{strategy}' is not in effect.*{reason}"):
        require_in_effect(opened.effective, parse(plan.strategy).promises(plan), when="loaded")


@pytest.mark.parametrize(
    ("tied", "decoding"),
    [(False, ""), (True, ""), pytest.param(False, COMPILED, marks=pytest.mark.nightly)],
)
def test_transformers_reads_a_checkpoint_by_its_own_plan(start: Start, tmp_path, tied, decoding):
    """Two ranks give the tokens of the whole model, with half of its bytes each."""
    folder = llama(tmp_path / "llama", tied=tied)
    alone, plan = (
        parse(text).apply(LoadPlan(model=folder)) for text in ("fp32", f"fp32+tp2{decoding}")
    )
    session = TransformersEngine().open(alone)
    expected, whole = session.run(WORK, 0), session.opened()
    session.close()
    ranks = start(plan)
    opened = ranks.call(Open(plan=plan), deadline_s=DEADLINE_S).facts
    assert opened.content_hash == whole.content_hash
    assert opened.effective.tensor_parallel == f"transformers {transformers.__version__}"
    assert opened.effective.linears == whole.effective.linears
    held_bytes = max(shard.bytes for shard in opened.effective.shards)
    assert held_bytes < 0.51 * whole.effective.weights_bytes
    ran = ranks.call(Run(workload=WORK, repetition=0), deadline_s=DEADLINE_S).run
    assert ran.outputs_hash == expected.outputs_hash
    described = ranks.call(Describe(), deadline_s=DEADLINE_S).description.effective
    require_in_effect(described, parse(plan.strategy).promises(plan), when="warm")


def llama(folder: Path, *, tied: bool) -> ModelRef:
    """A small llama in a folder; its output head may be tied to the embedding."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    return model_ref(str(folder))


def test_a_model_without_a_plan_is_refused_before_its_weights_are_read(start: Start, tmp_path):
    """GPT-2 has none, which only transformers knows."""
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=4, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    plan = parse("fp32+tp2").apply(LoadPlan(model=model_ref(str(tmp_path / "gpt2"))))
    with pytest.raises(
        LoadError, match=r"no tensor-parallel plan for GPT2LMHeadModel, .* Take 'fsdp2'"
    ):
        start(plan).call(Open(plan=plan), deadline_s=DEADLINE_S)


@pytest.mark.real_model
@pytest.mark.skipif(
    "LLMPERF_NIGHTLY" not in os.environ, reason="half a minute on two cores: make nightly runs it"
)
def test_a_real_model_in_three_parts_answers_as_on_one_device(start: Start, tmp_path):
    """SmolLM2 has 9 heads and 3 KV heads, and its head is tied."""
    alone, plan = (
        parse(text).apply(LoadPlan(model=model_ref("smollm2-135m")))
        for text in ("fp32", "fp32+tp3")
    )
    session = TransformersEngine().open(alone)
    path = str(tmp_path / "reference.safetensors")
    session.make_reference(PromptSet.synthetic(), 8, 4, path)
    session.close()
    ranks = start(plan)
    opened = ranks.call(Open(plan=plan), deadline_s=DEADLINE_S).facts
    require_in_effect(opened.effective, parse(plan.strategy).promises(plan), when="loaded")
    agreement = compared(ranks, plan, path)
    assert agreement.ok, agreement.reasons


def test_a_rank_that_exits_is_named_and_not_the_one_that_lost_it(start: Start):
    """Rank 0's connection breaks at once; the reason is rank 1."""
    plan = plan_of("fp32+own-tp2")
    ranks = start(plan, "exit")
    ranks.call(Open(plan=plan), deadline_s=DEADLINE_S)
    fails(ranks, WorkerDied, r"rank 1 of 2 .*ended by exit code 7 in Run")


def fails(ranks: Ranks, error: type[WorkerError], said: str, deadline_s: float = 10.0) -> None:
    """A run fails in bounded time with this reason, and nothing stays."""
    with pytest.raises(error) as caught:
        ranks.call(Run(workload=WORK, repetition=0), deadline_s=deadline_s)
    assert re.search(said, str(caught.value)), str(caught.value)
    assert not ranks.alive


@pytest.mark.parametrize("strategy", ["own-tp2", "own-pp2"])
def test_a_checkpoint_is_read_part_by_part(start: Start, tmp_path, strategy):
    """Falcon's fused heads and tied head, from safetensors.

    Two ranks give the tokens of the whole model, with half of its bytes each.
    """
    folder = falcon(tmp_path / "falcon")
    alone, plan = (
        parse(text).apply(LoadPlan(model=folder)) for text in ("fp32", f"fp32+{strategy}")
    )
    session = TransformersEngine().open(alone)
    expected, whole_bytes = session.run(WORK, 0), session.opened().effective.weights_bytes
    session.close()
    ranks = start(plan)
    opened = ranks.call(Open(plan=plan), deadline_s=DEADLINE_S).facts
    require_in_effect(opened.effective, parse(plan.strategy).promises(plan), when="loaded")
    held = [shard.bytes for shard in opened.effective.shards]
    # A pipeline's last stage has the embedding again, as its head.
    both = 1.2 if strategy == "own-pp2" else 1.01
    assert max(held) < 0.6 * whole_bytes
    assert sum(held) <= both * whole_bytes
    assert (
        ranks.call(Run(workload=WORK, repetition=0), deadline_s=DEADLINE_S).run.outputs_hash
        == expected.outputs_hash
    )


def falcon(folder: Path) -> ModelRef:
    """A small model of falcon-40b's kind: groups of query heads with a KV head each.

    Its output head is tied to the embedding.
    """
    torch.manual_seed(3)
    config = FalconConfig(
        vocab_size=320,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_kv_heads=2,
        new_decoder_architecture=True,
        bias=False,
        alibi=False,
    )
    model = FalconForCausalLM(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    return model_ref(str(folder))


def test_offloaded_weights_wait_on_disk_and_answer_alike(alone):
    """Nothing but small tables lies on the device between forward passes."""
    ran, whole_bytes, _ = alone
    plan = plan_of("fp32+offload-disk")
    session = TransformersEngine().open(plan)
    effective = session.opened().effective
    require_in_effect(effective, parse(plan.strategy).promises(plan), when="loaded")
    assert effective.offloaded_bytes == {"disk": pytest.approx(whole_bytes, rel=0.01)}
    assert effective.weights_bytes < 0.01 * whole_bytes
    assert session.run(WORK, 0).outputs_hash == ran.outputs_hash
    session.close()
