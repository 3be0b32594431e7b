"""The ranks of one model as one channel: each command goes to all of them, and their answers become one. Pure but for the call.

What must be equal on all ranks (token ids, dtypes, the weights' identity) is compared, and a difference is an error that
names the ranks. What each rank has of its own (bytes, marks, joules) is kept or added up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from msgspec import structs

from pytest_llmperf.core.effective import Effective, LinearGroup, TensorGroup
from pytest_llmperf.core.loaded import Description, ModelFacts, TimedRun
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import Ceilings, EnergyReading, Mark, MemoryGauges, StepCost
from pytest_llmperf.errors import RanksDisagree
from pytest_llmperf.wire.commands import Command, R
from pytest_llmperf.wire.results import (
    CeilingsRead,
    CollectivesRead,
    Described,
    EnergyRead,
    MemoryRead,
    Opened,
    Ran,
    ReferenceCompared,
    Result,
)
from pytest_llmperf.workers.exchange import OnBeat
from pytest_llmperf.workers.group import WorkerGroup

_SAME = (
    "model_class",
    "compute_dtype",
    "autocast_dtype",
    "checkpoint_dtype",
    "attention",
    "cache",
    "compile_mode",
    "decode_loop",
    "padding_side",
    "adapters",
)
"""Fields of Effective that every rank must have alike."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Ranks:
    """See session.pool.Channel. `group` holds the workers of `plan`, one a rank."""

    group: WorkerGroup
    plan: LoadPlan

    def call(self, command: Command[R], *, deadline_s: float, on_beat: OnBeat | None = None) -> R:
        """All ranks' answer to a command.

        Raises as WorkerGroup.call_all, and RanksDisagree, which ends the workers.
        """
        results = self.group.call_all(command, deadline_s=deadline_s, on_beat=on_beat)
        try:
            return merged(results, self.plan)
        except RanksDisagree:
            self.group.kill()
            raise

    def close(self) -> object:
        """End the workers and give everything back."""
        return self.group.close()

    @property
    def alive(self) -> bool:
        """Whether every rank can take another command."""
        return self.group.alive

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids in rank order."""
        return self.group.pids


def merged(results: Sequence[T], plan: LoadPlan) -> T:
    """One result of the ranks' results, in rank order. Raises RanksDisagree."""
    make = _MERGES.get(type(results[0]))
    if make is None or len(results) == 1:
        return results[0]
    together: T = make(results, plan)
    return together


def same(what: str, values: Sequence[T]) -> T:
    """The one value that all ranks gave. Raises RanksDisagree with each value and its ranks."""
    if all(value == values[0] for value in values):
        return values[0]
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(repr(value), []).append(rank)
    said = "; ".join(
        f"{value} on rank {', '.join(map(str, where))}" for value, where in ranks.items()
    )
    raise RanksDisagree(
        f"{what} must be equal on all ranks and is not: {said}. They do not compute the same model together."
    )


# What is in effect


def together(effective: Sequence[Effective], plan: LoadPlan) -> Effective:
    """What the ranks hold and do as one model.

    Tensors and layers are those of all; a layer that is cut is one.
    """
    for field in _SAME:
        same(f"{field} in effect", [getattr(each, field) for each in effective])
    return structs.replace(
        effective[0],
        tensors=_tensors(group for each in effective for group in each.tensors),
        linears=_linears([group for each in effective for group in each.linears], plan),
        compiled_graphs=min(each.compiled_graphs for each in effective),
        ranks=len(effective),
        shards=tuple(shard for each in effective for shard in each.shards),
        notes=tuple(dict.fromkeys(note for each in effective for note in each.notes)),
    )


def _tensors(groups: Iterable[TensorGroup]) -> tuple[TensorGroup, ...]:
    return tuple(
        _added(
            groups,
            ("kind", "dtype", "device", "kept", "quantized"),
            ("tensors", "elements", "bytes"),
        )
    )


def _linears(groups: Sequence[LinearGroup], plan: LoadPlan) -> tuple[LinearGroup, ...]:
    """Each rank counts the layers of its stage, whole (FSDP, replicas) or its part of each (tensor parallel)."""
    summed = _added(groups, ("cls", "dtype", "quantized"), ("layers", "elements", "bytes"))
    return tuple(
        structs.replace(
            group,
            layers=max(1, group.layers * plan.pp // plan.ranks),
            elements=group.elements // (plan.dp * plan.fsdp),
        )
        for group in summed
    )


def _added(groups: Iterable[Any], keys: Sequence[str], sums: Sequence[str]) -> list[Any]:
    found: dict[tuple[object, ...], Any] = {}
    for group in groups:
        key = tuple(getattr(group, name) for name in keys)
        before = found.get(key)
        totals = (
            {}
            if before is None
            else {name: getattr(before, name) + getattr(group, name) for name in sums}
        )
        found[key] = structs.replace(group, **totals)
    return [found[key] for key in sorted(found, key=repr)]


def _opened(results: Sequence[Any], plan: LoadPlan) -> Result:
    ranks: list[ModelFacts] = [opened.facts for opened in results]
    same("the content of the weights", [facts.content_hash for facts in ranks])
    facts = structs.replace(
        ranks[0],
        effective=together([facts.effective for facts in ranks], plan),
        load_s=max(facts.load_s for facts in ranks),
        vocab_size=same("the size of the vocabulary", [facts.vocab_size for facts in ranks]),
        device_facts=ranks[0].device_facts | {"ranks": len(ranks)},
        memory=total([facts.memory for facts in ranks]),
    )
    return Opened(facts=facts)


def _described(results: Sequence[Any], plan: LoadPlan) -> Result:
    ranks: list[Description] = [described.description for described in results]
    description = Description(
        effective=together([rank.effective for rank in ranks], plan),
        memory=total([rank.memory for rank in ranks]),
    )
    return Described(description=description)


def total(gauges: Sequence[MemoryGauges]) -> MemoryGauges:
    """Bytes of all ranks; unknown, with its reason, where one rank does not know."""
    reasons = {
        name: f"rank {rank}: {reason}"
        for rank, each in enumerate(gauges)
        for name, reason in each.reasons.items()
    }
    names = ("weights", "peak", "reserved", "process", "device", "kv_cache")
    values = {name: [getattr(each, name) for each in gauges] for name in names}
    sums: dict[str, Any] = {
        name: None if None in found else sum(found) for name, found in values.items()
    }
    return MemoryGauges(**sums, reasons=reasons)


# What was measured


def _ran(results: Sequence[Any], plan: LoadPlan) -> Result:
    """The requests of each replica once.

    All ranks of a replica must have read and written the same tokens.
    """
    runs: list[TimedRun] = [ran.run for ran in results]
    per_replica = plan.ranks // plan.dp
    replicas = [runs[start : start + per_replica] for start in range(0, plan.ranks, per_replica)]
    for replica in replicas:
        same("the prompts' token ids", [each.prompts_hash for each in replica])
        same("the generated token ids", [each.outputs_hash for each in replica])
    firsts = [replica[0] for replica in replicas]
    marks = tuple(_of_rank(mark, rank) for rank, run in enumerate(runs) for mark in run.trace.marks)
    requests = tuple(request for each in firsts for request in each.trace.requests)
    telemetry = {
        f"{name}.rank{rank}" if rank else name: v
        for rank, run in enumerate(runs)
        for name, v in run.telemetry.items()
    }
    run = structs.replace(
        firsts[0],
        trace=structs.replace(firsts[0].trace, requests=requests, marks=marks),
        step=step_of_all([run.step for run in runs], plan),
        telemetry=telemetry,
        prompts_hash=_joined([each.prompts_hash for each in firsts]),
        outputs_hash=_joined([each.outputs_hash for each in firsts]),
    )
    return Ran(run=run)


def step_of_all(steps: Sequence[StepCost | None], plan: LoadPlan) -> StepCost | None:
    """What the ranks move and compute in one step together, work that FSDP ranks repeat counted once.

    Replicas and FSDP ranks each see whole layers, so that costs a token are added up and divided by their number.
    """
    known = [step for step in steps if step is not None]
    if len(known) < len(steps):
        return None
    repeated = plan.dp * plan.fsdp

    def per_token(name: str) -> float:
        return float(sum(getattr(step, name) for step in known)) / repeated

    return structs.replace(
        known[0],
        weight_bytes_read=sum(step.weight_bytes_read for step in known),
        kv_bytes_per_token=round(per_token("kv_bytes_per_token")),
        flops_per_token=per_token("flops_per_token"),
        attention_flops_per_token_per_position=per_token("attention_flops_per_token_per_position"),
    )


def _of_rank(mark: Mark, rank: int) -> Mark:
    return structs.replace(mark, detail=f"rank {rank}: {mark.detail}")


def _joined(hashes: Sequence[str]) -> str:
    return (
        hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]
    )


def _memory(results: Sequence[Any], _plan: LoadPlan) -> Result:
    gauges = [each.memory for each in results if each.memory is not None]
    if len(gauges) < len(results):
        return MemoryRead(memory=None)
    return MemoryRead(memory=total(gauges), ranks=tuple(gauges))


def _energy(results: Sequence[Any], plan: LoadPlan) -> Result:
    """The joules of all devices; of one counter that all ranks read (a CPU package's), once."""
    readings: list[EnergyReading] = [each.energy for each in results]
    unread = next((each for each in readings if each.joules is None), None)
    if unread is not None:
        return EnergyRead(energy=unread)
    own = plan.device.partition(":")[0] != "cpu"
    return EnergyRead(
        energy=structs.replace(
            readings[0],
            joules=sum(each.joules or 0.0 for each in readings) if own else readings[0].joules,
            seconds=max(each.seconds for each in readings),
            n_output_tokens=sum(each.n_output_tokens for each in readings) * plan.dp // plan.ranks,
        ),
    )


def _ceilings(results: Sequence[Any], _plan: LoadPlan) -> Result:
    """What the devices reach together, all measured at the same time: ranks that share one device share its ceiling."""
    found: list[Ceilings] = [each.ceilings for each in results if each.ceilings is not None]
    if len(found) < len(results):
        return CeilingsRead(ceilings=None)
    rates = {
        name: sum(each.matmul_flop_per_s[name] for each in found)
        for name in found[0].matmul_flop_per_s
    }
    copy = sum(each.copy_bytes_per_s for each in found)
    return CeilingsRead(
        ceilings=structs.replace(found[0], copy_bytes_per_s=copy, matmul_flop_per_s=rates)
    )


def _collectives(results: Sequence[Any], _plan: LoadPlan) -> Result:
    found: list[CollectivesRead] = list(results)
    shares = [each.share for each in found if each.share is not None]
    unread = next((each for each in found if each.share is None), None)
    return CollectivesRead(share=sum(shares) / len(shares)) if unread is None else unread


def _compared(results: Sequence[Any], _plan: LoadPlan) -> Result:
    same(
        "the texts continued from the reference's prompts",
        [[p.candidate_text for p in each.prompts] for each in results],
    )
    first: ReferenceCompared = results[0]
    return first


_MERGES: dict[type[object], Callable[[Sequence[Any], LoadPlan], Any]] = {
    Opened: _opened,
    Described: _described,
    Ran: _ran,
    MemoryRead: _memory,
    EnergyRead: _energy,
    CeilingsRead: _ceilings,
    CollectivesRead: _collectives,
    ReferenceCompared: _compared,
}
"""How the answers of several ranks become one; of what is not here rank 0's is taken."""
