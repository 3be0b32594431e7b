"""The ranks of one model as one channel: each command goes to all, and their answers become one.

What must be equal on all ranks (token ids, dtypes, the weights' identity) is compared, and a
difference is an error that names the ranks. What each rank has of its own (bytes, marks, joules) is
kept or added up. All but the call is pure.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any, TypeVar

from msgspec import structs

from pytest_llmperf.core.effective import ComputeGroup, Effective, LinearGroup, TensorGroup
from pytest_llmperf.core.loaded import Description, ModelFacts, TimedRun
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import (
    Ceilings,
    EnergyReading,
    Mark,
    MemoryGauges,
    StepCost,
    added_up,
    ceilings_together,
)
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
    "tensor_parallel",
)
"""Fields of Effective that every rank must have alike."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Ranks:
    """See workers.pool.Channel. `group` holds the workers of `plan`, one a rank."""

    group: WorkerGroup
    plan: LoadPlan

    def call(self, command: Command[R], *, deadline_s: float, on_beat: OnBeat | None = None) -> R:
        """Return the one answer of all ranks to a command.

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
    def started(self) -> str:
        """How the workers were started."""
        return self.group.started

    @property
    def fork_failure(self) -> str:
        """Why the workers could not be forked, though they were to be; or nothing."""
        return self.group.fork_failure

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids in rank order."""
        return self.group.pids


def merged(results: Sequence[T], plan: LoadPlan) -> T:
    """Return one result for the ranks' results, which are in rank order. Raises RanksDisagree."""
    merge = _MERGES.get(type(results[0]))
    if merge is None or len(results) == 1:
        return results[0]
    result: T = merge(results, plan)
    return result


def same(what: str, values: Sequence[T]) -> T:
    """Return the one value of all ranks. Raises RanksDisagree with each value and its ranks."""
    if all(value == values[0] for value in values):
        return values[0]
    raise RanksDisagree(
        f"{what} must be equal on all ranks and is not: {_values_by_rank(values)}. "
        "They do not compute the same model together."
    )


def _values_by_rank(values: Sequence[object]) -> str:
    ranks: dict[str, list[str]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(repr(value), []).append(str(rank))
    return "; ".join(f"{value} on rank {', '.join(ranks[value])}" for value in ranks)


# What is in effect


def together(effective: Sequence[Effective], plan: LoadPlan) -> Effective:
    """Return what the ranks hold and do as one model.

    Tensors and layers are those of all; a layer that is cut is one.
    """
    for field in _SAME:
        same(f"{field} in effect", [getattr(rank, field) for rank in effective])
    notes = chain.from_iterable(rank.notes for rank in effective)
    compiled = [rank for rank in effective if rank.compiled_share is not None]
    return structs.replace(
        effective[0],
        tensors=_tensors(chain.from_iterable(rank.tensors for rank in effective)),
        linears=_linears(chain.from_iterable(rank.linears for rank in effective), plan),
        computes=_computes(chain.from_iterable(rank.computes for rank in effective), plan),
        compiled_graphs=min(rank.compiled_graphs for rank in effective),
        compiled_share=min((one.compiled_share or 0.0 for one in compiled), default=None),
        ranks=len(effective),
        shards=tuple(chain.from_iterable(rank.shards for rank in effective)),
        notes=tuple(dict.fromkeys(notes)),
    )


def _tensors(groups: Iterable[TensorGroup]) -> tuple[TensorGroup, ...]:
    keys = ("kind", "dtype", "device", "fixed_dtype", "quantized")
    return tuple(_added(groups, keys, ("tensors", "elements", "bytes")))


def _linears(groups: Iterable[LinearGroup], plan: LoadPlan) -> tuple[LinearGroup, ...]:
    """Return the layers of the model from those that each rank counts.

    A rank counts the layers of its stage: whole ones (FSDP, replicas) or its part of each (tensor
    parallel).
    """
    summed = _added(groups, ("cls", "dtype", "quantized"), ("layers", "elements", "bytes"))
    return tuple(
        structs.replace(
            group,
            layers=max(1, group.layers * plan.pp // plan.ranks),
            elements=group.elements // (plan.dp * plan.fsdp),
        )
        for group in summed
    )


def _computes(groups: Iterable[ComputeGroup], plan: LoadPlan) -> tuple[ComputeGroup, ...]:
    """Return the products of all ranks; each rank has its share of them."""
    summed = _added(groups, ("dtype", "output", "linear", "fixed_dtype"), ("modules", "share"))
    return tuple(
        structs.replace(
            group,
            modules=max(1, group.modules * plan.pp // plan.ranks),
            share=group.share / plan.ranks,
        )
        for group in summed
    )


def _added(groups: Iterable[Any], keys: Sequence[str], sums: Sequence[str]) -> list[Any]:
    """Return one group for all that have equal `keys`, with their `sums` added up."""
    by_key: defaultdict[tuple[object, ...], list[Any]] = defaultdict(list)
    for group in groups:
        by_key[tuple(getattr(group, name) for name in keys)].append(group)
    return [_sum_of(by_key[key], sums) for key in sorted(by_key, key=repr)]


def _sum_of(groups: Sequence[Any], sums: Sequence[str]) -> Any:
    totals = {name: sum(getattr(group, name) for group in groups) for name in sums}
    return structs.replace(groups[-1], **totals)


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
    """Return the bytes of all ranks; unknown, with its reason, where one rank does not know."""
    names = ("weights", "peak", "growth", "reserved", "process", "device", "kv_cache")
    sums: dict[str, Any] = {
        name: _sum_or_none([getattr(memory, name) for memory in gauges]) for name in names
    }
    return MemoryGauges(**sums, reasons=_reasons(gauges))


def _sum_or_none(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _reasons(gauges: Sequence[MemoryGauges]) -> dict[str, str]:
    return {
        name: f"rank {rank}: {reason}"
        for rank, memory in enumerate(gauges)
        for name, reason in memory.reasons.items()
    }


# What was measured


def _ran(results: Sequence[Any], plan: LoadPlan) -> Result:
    """Return a run with the requests of each replica once.

    All ranks of a replica must have read and written the same tokens.
    """
    runs: list[TimedRun] = [ran.run for ran in results]
    firsts = _first_of_each_replica(runs, plan)
    requests = tuple(chain.from_iterable(run.trace.requests for run in firsts))
    run = structs.replace(
        firsts[0],
        trace=structs.replace(firsts[0].trace, requests=requests, marks=_marks(runs)),
        step=step_of_all([run.step for run in runs], plan),
        telemetry=_telemetry(runs),
        prompts_hash=_joined([run.prompts_hash for run in firsts]),
        outputs_hash=_joined([run.outputs_hash for run in firsts]),
    )
    return Ran(run=run)


def _first_of_each_replica(runs: Sequence[TimedRun], plan: LoadPlan) -> list[TimedRun]:
    ranks_of_replica = plan.ranks // plan.dp
    firsts = []
    for first in range(0, plan.ranks, ranks_of_replica):
        replica = runs[first : first + ranks_of_replica]
        same("the prompts' token ids", [rank.prompts_hash for rank in replica])
        same("the generated token ids", [rank.outputs_hash for rank in replica])
        firsts.append(replica[0])
    return firsts


def _marks(runs: Sequence[TimedRun]) -> tuple[Mark, ...]:
    """Return the marks of all ranks, each of which says its rank."""
    return tuple(
        structs.replace(mark, detail=f"rank {rank}: {mark.detail}")
        for rank, run in enumerate(runs)
        for mark in run.trace.marks
    )


def _telemetry(runs: Sequence[TimedRun]) -> dict[str, float]:
    """Return the gauges of all ranks; those of rank 0 keep their names."""
    return {
        f"{name}.rank{rank}" if rank else name: value
        for rank, run in enumerate(runs)
        for name, value in run.telemetry.items()
    }


def step_of_all(steps: Sequence[StepCost | None], plan: LoadPlan) -> StepCost | None:
    """Return what the ranks move and compute in one step together.

    Work that FSDP ranks repeat is counted once. Replicas and FSDP ranks each see whole layers, so
    that the costs of a token are added up and divided by their number.
    """
    known = [step for step in steps if step is not None]
    return added_up(known, plan.dp * plan.fsdp) if len(known) == len(steps) else None


def _joined(hashes: Sequence[str]) -> str:
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]


def _memory(results: Sequence[Any], _plan: LoadPlan) -> Result:
    gauges = [rank.memory for rank in results if rank.memory is not None]
    if len(gauges) < len(results):
        return MemoryRead(memory=None)
    return MemoryRead(memory=total(gauges), ranks=tuple(gauges))


def _energy(results: Sequence[Any], plan: LoadPlan) -> Result:
    """Return the joules of all devices.

    Those of a counter that all ranks read (a CPU package's) count once.
    """
    readings: list[EnergyReading] = [rank.energy for rank in results]
    unread = next((reading for reading in readings if reading.joules is None), None)
    if unread is not None:
        return EnergyRead(energy=unread)
    n_tokens = sum(reading.n_output_tokens for reading in readings)
    energy = structs.replace(
        readings[0],
        joules=_joules(readings, plan),
        seconds=max(reading.seconds for reading in readings),
        n_output_tokens=n_tokens * plan.dp // plan.ranks,
    )
    return EnergyRead(energy=energy)


def _joules(readings: Sequence[EnergyReading], plan: LoadPlan) -> float | None:
    if plan.device.partition(":")[0] == "cpu":
        return readings[0].joules
    return sum(reading.joules or 0.0 for reading in readings)


def _ceilings(results: Sequence[Any], _plan: LoadPlan) -> Result:
    """Return what the devices reach together, all measured at the same time.

    Ranks that share one device share its ceiling.
    """
    ceilings: list[Ceilings] = [rank.ceilings for rank in results if rank.ceilings is not None]
    if len(ceilings) < len(results):
        return CeilingsRead(ceilings=None)
    return CeilingsRead(ceilings=ceilings_together(ceilings))


def _collectives(results: Sequence[Any], _plan: LoadPlan) -> Result:
    readings: list[CollectivesRead] = list(results)
    unread = next((reading for reading in readings if reading.share is None), None)
    if unread is not None:
        return unread
    return CollectivesRead(share=fmean(reading.share or 0.0 for reading in readings))


def _compared(results: Sequence[Any], _plan: LoadPlan) -> Result:
    same(
        "the texts continued from the reference's prompts",
        [[prompt.candidate_text for prompt in rank.prompts] for rank in results],
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
"""How the answers of several ranks become one. Where a result is not listed, rank 0's is used."""
