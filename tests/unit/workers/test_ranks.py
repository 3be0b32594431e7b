"""The answers of several ranks become one: added up, compared, or refused with the ranks named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pytest_llmperf.core.effective import Effective, LinearGroup, Shard, TensorGroup
from pytest_llmperf.core.loaded import Description, TimedRun
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.trace import (
    Ceilings,
    EnergyReading,
    Mark,
    MemoryGauges,
    RequestTrace,
    StepCost,
    TokenEvent,
    Trace,
)
from pytest_llmperf.errors import NotInEffect, RanksDisagree
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.wire.results import (
    CeilingsRead,
    Closed,
    CollectivesRead,
    Described,
    EnergyRead,
    MemoryRead,
    Ran,
)
from pytest_llmperf.workers.ranks import merged, same, step_of_all

WHOLE = 1_000_000


def plan_of(strategy: str, device: str = "cpu") -> LoadPlan:
    return parse(strategy).apply(
        LoadPlan(model=ModelRef(name="m", kind="arch", location="tiny-llama"), device=device)
    )


def shard(rank: int, plan: LoadPlan, **changes: object) -> Shard:
    kind = plan.device.partition(":")[0]
    cut = plan.tp * plan.fsdp * plan.pp
    facts = {
        "rank": rank,
        "device": "cpu" if kind == "cpu" else f"cuda:{rank} uuid{rank}",
        "backend": "gloo" if kind == "cpu" else "nccl",
        "bytes": WHOLE // cut,
        "whole_bytes": WHOLE,
        "stage_bytes": WHOLE // plan.pp,
        "kept_bytes": 0,
        "holds": "a part",
    }
    return Shard(**facts | changes)


def carrier(plan: LoadPlan) -> str:
    if plan.tp == 1:
        return ""
    return "pytest-llmperf" if plan.tp_by == "own" else "transformers 5.23.0"


def effective(rank: int, plan: LoadPlan, **changes: object) -> Effective:
    cut = plan.tp * plan.fsdp * plan.pp
    group = {"dtype": "float32", "elements": WHOLE // 4 // cut, "bytes": WHOLE // cut}
    facts = {
        "engine": "transformers",
        "model_class": "LlamaForCausalLM",
        "tensors": (TensorGroup(kind="parameter", device="cpu", tensors=20, **group),),
        "linears": (LinearGroup(cls="Linear", layers=14 // plan.pp, **group),),
        "compute_dtype": "float32",
        "autocast_dtype": None,
        "checkpoint_dtype": "float32",
        "attention": "sdpa",
        "cache": "",
        "compile_mode": None,
        "compiled_graphs": 0,
        "decode_loop": "",
        "padding_side": "left",
        "device": "cpu",
        "ranks": plan.ranks,
        "shards": (shard(rank, plan),),
        "tensor_parallel": carrier(plan),
    }
    return Effective(**facts | changes)


def described(plan: LoadPlan, *changes: dict) -> Effective:
    """What the ranks say together, with the fields of some changed."""
    each = [changes[rank] if rank < len(changes) else {} for rank in range(plan.ranks)]
    memory = MemoryGauges(weights=1)
    answers = [
        Described(
            description=Description(effective=effective(rank, plan, **each[rank]), memory=memory)
        )
        for rank in range(plan.ranks)
    ]
    return merged(answers, plan).description.effective


def ran(outputs: str = "o", prompts: str = "p", **changes: object) -> Ran:
    request = RequestTrace(n_prompt_tokens=4, t_due_ns=0, events=(TokenEvent(10), TokenEvent(20)))
    step = StepCost(
        weight_bytes_read=100,
        kv_bytes_per_token=8,
        flops_per_token=50.0,
        attention_flops_per_token_per_position=2.0,
        compute_dtype="float32",
    )
    run = TimedRun(
        trace=Trace(repetition=0, requests=(request,), **changes),
        step=step,
        prompts_hash=prompts,
        outputs_hash=outputs,
    )
    return Ran(run=run)


@pytest.mark.parametrize(
    "strategy",
    [
        "fp32+tp2",
        "fp32+own-tp2",
        "fp32+fsdp2",
        "fp32+own-pp2",
        "fp32+dp2",
        "fp32+own-tp2+own-pp2",
        "fp32+tp3",
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_ranks_that_hold_their_parts_keep_the_promises(strategy, device):
    """All ranks there, devices their own, bytes by the split."""
    plan = plan_of(strategy, device)
    require_in_effect(described(plan), parse(strategy).promises(plan), when="loaded")


@pytest.mark.parametrize(
    ("strategy", "changes", "said"),
    [
        ("tp2", ({}, {"shards": ()}), r"1 ranks hold a part of the model \(\[0\]\), asked for 2"),
        (
            "fsdp2",
            tuple({"bytes": WHOLE} for _ in range(2)),
            "rank 0 1.000 MB .at most 0.510., rank 1 1.000 MB",
        ),
        ("tp2", ({}, {"bytes": 100}), "do not hold their shares of the 1.000 MB model"),
        ("own-pp2", ({"bytes": 900_000},), "rank 0 0.900 MB .at most 0.510."),
        ("dp2", ({}, {"bytes": WHOLE // 2}), "do not hold their shares"),
        ("tp2", ({"device": "cuda:0 a"}, {"device": "cuda:1 a"}), None),
        ("tp2", ({"device": "cuda:0 a"}, {"device": "cuda:0 a"}), "2 ranks share 1 devices"),
        ("tp2", ({"backend": "gloo"},), "collectives go through gloo, nccl is wanted on cuda"),
    ],
)
def test_a_broken_split_is_told_with_the_counts_of_each_rank(strategy, changes, said):
    """Each way to hold too much, too little, or in the wrong place."""
    plan = plan_of(f"fp32+{strategy}", "cuda")
    each = [
        change if "shards" in change else {"shards": (shard(rank, plan, **change),)}
        for rank, change in enumerate(changes)
    ]
    found = described(plan, *each)
    if said is None:
        require_in_effect(found, parse(plan.strategy).promises(plan), when="loaded")
        return
    with pytest.raises(NotInEffect, match=said):
        require_in_effect(found, parse(plan.strategy).promises(plan), when="loaded")


@pytest.mark.parametrize(
    ("strategy", "carrier", "reason"),
    [
        (
            "tp2",
            "pytest-llmperf",
            "carried out by pytest-llmperf, not by the library of engine 'transformers'",
        ),
        ("own-tp2", "transformers 5.23.0", "by transformers 5.23.0, not by pytest-llmperf"),
        ("tp2", "", "carried out by nobody, not by"),
    ],
)
def test_tensor_parallelism_of_somebody_else_is_not_in_effect(strategy, carrier, reason):
    """The ranks and their bytes are right, the code that joins them is not what was asked for."""
    plan = plan_of(f"fp32+{strategy}")
    together = described(plan, *[{"tensor_parallel": carrier}] * 2)
    with pytest.raises(NotInEffect, match=f"'{strategy}' is not in effect.*{reason}"):
        require_in_effect(together, parse(plan.strategy).promises(plan), when="loaded")


def test_what_every_rank_keeps_whole_is_allowed_for():
    """Half of a model that every rank keeps leaves the other half to be shared."""
    plan = plan_of("fp32+tp2")
    kept = {"shards": (shard(0, plan, bytes=750_000, kept_bytes=500_000),)}
    other = {"shards": (shard(1, plan, bytes=750_000, kept_bytes=500_000),)}
    require_in_effect(
        described(plan, kept, other), parse(plan.strategy).promises(plan), when="loaded"
    )


def test_tensors_of_all_ranks_are_added_and_a_cut_layer_is_one():
    """14 layers in two halves are 14 layers; in two stages of 7 they are 14, too."""
    for strategy in ("own-tp2", "fsdp2", "own-pp2"):
        found = described(plan_of(f"fp32+{strategy}"))
        assert found.weights_bytes == WHOLE
        assert found.linears[0].layers == 14
        assert found.ranks == len(found.shards) == 2


def test_a_rank_in_another_dtype_is_named():
    """What must be equal and is not is an error with both values."""
    with pytest.raises(
        RanksDisagree, match=r"compute_dtype.*'float32' on rank 0; 'bfloat16' on rank 1"
    ):
        described(plan_of("fp32+tp2"), {}, {"compute_dtype": "bfloat16"})
    wrong = LinearGroup(cls="Linear", dtype="bfloat16", layers=1, elements=1, bytes=2)
    plan = plan_of("fp32+tp2")
    with pytest.raises(NotInEffect, match="hold bfloat16 weights"):
        require_in_effect(
            described(plan, {}, {"linears": (wrong,)}),
            parse(plan.strategy).promises(plan),
            when="loaded",
        )


def test_ranks_that_generate_different_tokens_disagree():
    """Of one replica; the replicas of dp have prompts of their own."""
    with pytest.raises(
        RanksDisagree, match=r"generated token ids.*'x' on rank 0, 2; 'y' on rank 1"
    ):
        merged([ran("x"), ran("y"), ran("x")], plan_of("tp3"))
    both = merged([ran("x", "a"), ran("y", "b")], plan_of("dp2")).run
    assert len(both.trace.requests) == 2
    assert both.outputs_hash not in {"x", "y"}
    with pytest.raises(RanksDisagree, match="prompts' token ids"):
        merged([ran("x", "a"), ran("x", "b"), ran("x", "a"), ran("x", "a")], plan_of("dp2+tp2"))


def test_marks_of_every_rank_count():
    """A GPU that is throttled makes the run doubtful whichever it is."""
    hot = ran(marks=(Mark(kind="throttled", detail="82 C"),))
    assert merged([ran(), hot], plan_of("tp2")).run.trace.marks == (
        Mark(kind="throttled", detail="rank 1: 82 C"),
    )


@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 2]),
)
def test_the_cost_of_a_step_does_not_depend_on_how_it_is_spread(tp, fsdp, pp, dp):
    """Costs a token are those of the whole model, weights are read once by each replica."""
    alone = ran().run.step
    plan = structs.replace(
        plan_of("fp32"), tp=tp, fsdp=fsdp, pp=pp, dp=dp, ranks=tp * fsdp * pp * dp
    )
    split = tp * pp
    mine = structs.replace(
        alone,
        weight_bytes_read=1200 // (split * fsdp),
        kv_bytes_per_token=2400 // split,
        flops_per_token=600.0 / split,
        attention_flops_per_token_per_position=60.0 / split,
    )
    found = step_of_all([mine] * plan.ranks, plan)
    assert found.weight_bytes_read == 1200 // (split * fsdp) * plan.ranks
    assert found.kv_bytes_per_token == 2400
    assert found.flops_per_token == pytest.approx(600.0)
    assert found.attention_flops_per_token_per_position == pytest.approx(60.0)
    assert step_of_all([mine, None], plan) is None


def test_memory_is_summed_and_kept_for_each_rank():
    """A gauge that one rank cannot read is unknown, with the rank in the reason."""
    known, unknown = (
        MemoryGauges(weights=3, peak=5),
        MemoryGauges(weights=4, reasons={"peak": "no"}),
    )
    found = merged([MemoryRead(memory=known), MemoryRead(memory=unknown)], plan_of("tp2"))
    assert (found.memory.weights, found.memory.peak, found.memory.reasons) == (
        7,
        None,
        {"peak": "rank 1: no"},
    )
    assert found.ranks == (known, unknown)


@pytest.mark.parametrize(
    ("strategy", "device", "joules", "tokens"),
    [("tp2", "cuda", 6.0, 10), ("dp2", "cuda", 6.0, 20), ("tp2", "cpu", 3.0, 10)],
)
def test_joules_of_all_devices_and_of_a_shared_counter_once(strategy, device, joules, tokens):
    """Tokens that all ranks generate together count once."""
    reading = EnergyRead(energy=EnergyReading(joules=3.0, seconds=3.0, n_output_tokens=10))
    found = merged([reading, reading], plan_of(strategy, device)).energy
    assert (found.joules, found.n_output_tokens) == (joules, tokens)
    unread = EnergyRead(
        energy=EnergyReading(joules=None, seconds=0.0, n_output_tokens=0, reason="no counter")
    )
    assert merged([reading, unread], plan_of(strategy, device)).energy.reason == "no counter"


def test_ceilings_are_those_of_the_devices_together():
    """Two devices move twice the bytes."""
    one = CeilingsRead(
        ceilings=Ceilings(
            device="d",
            copy_bytes_per_s=5.0,
            read_bytes_per_s=6.0,
            matmul_flop_per_s={"float32": 7.0},
        )
    )
    found = merged([one, one], plan_of("tp2")).ceilings
    assert (found.copy_bytes_per_s, found.bytes_per_s) == (10.0, 12.0)
    assert found.matmul_flop_per_s == {"float32": 14.0}
    assert merged([one, CeilingsRead(ceilings=None)], plan_of("tp2")).ceilings is None


def test_the_share_in_collectives_is_the_mean_of_the_ranks():
    """Unless one of them cannot tell."""
    assert merged(
        [CollectivesRead(share=0.2), CollectivesRead(share=0.4)], plan_of("tp2")
    ).share == pytest.approx(0.3)
    unread = CollectivesRead(share=None, reason="no profiler")
    assert merged([CollectivesRead(share=0.2), unread], plan_of("tp2")) == unread


def test_other_answers_are_those_of_rank_0():
    """And one rank's answer is its own."""
    assert merged([Closed(), Closed()], plan_of("tp2")) == Closed()
    assert merged([ran("x")], plan_of("fp32")).run.outputs_hash == "x"
    assert same("it", [1, 1]) == 1
