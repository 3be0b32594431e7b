"""One block of a pair: one model, or two in turn, reduced to one number a metric.

A block has its own warm-up and samples.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.core.foreign_load import OthersWork, is_beside_load, mean_share
from pytest_llmperf.core.loaded import TimedRun
from pytest_llmperf.core.metrics.offline import reduce
from pytest_llmperf.core.metrics.readings import Readings
from pytest_llmperf.core.metrics.results import Quantity, RunResult
from pytest_llmperf.core.trace import EnergyReading, MemoryGauges
from pytest_llmperf.core.verdicts.estimate import NotMeasurable
from pytest_llmperf.session.ceilings import ceilings_of
from pytest_llmperf.session.measured import Acquire
from pytest_llmperf.session.run import ENERGY_SECONDS, Repeater
from pytest_llmperf.session.sampling import (
    Goal,
    Progress,
    Side,
    WarmUp,
    duration_s,
    sample,
    valid_indices,
    warm_up,
)
from pytest_llmperf.wire.commands import ReadEnergy, ReadMemory
from pytest_llmperf.wire.results import BlockMeasured
from pytest_llmperf.workloads import Workload

_CEILING_METRICS = frozenset({"mbu", "mfu", "prefill_mfu"})


def measure_block(
    acquire: Sequence[Acquire],
    workload: Workload,
    metrics: Sequence[str],
    goal: Goal,
    progress: Progress,
    *,
    first_repetition: int = 0,
) -> BlockMeasured:
    """Measure `metrics` of each model once.

    `first_repetition` numbers the prompts, so that no block repeats another's.

    Raises:
        InvalidRun: too few valid repetitions. WorkerError and others as `session.run.measure`.
    """
    repeaters = [Repeater(load, workload) for load in acquire]
    sides = [repeater.side(first_repetition, allow_load=True) for repeater in repeaters]
    warmed = [warm_up(side, goal, progress) for side in sides]
    sample(sides, goal, progress)
    valid = valid_indices(sides)
    results = [
        _reduced(repeater, side, valid, metrics)
        for repeater, side in zip(repeaters, sides, strict=True)
    ]
    return BlockMeasured(
        values=tuple(_values(result, metrics) for result in results),
        reasons=_reasons(results, metrics),
        spent_s=sum(map(_spent_s, warmed, sides)),
        others=_others_work([side.runs[index] for side in sides for index in valid]),
    )


def _others_work(runs: Sequence[TimedRun]) -> OthersWork:
    """Return what other programs did beside the repetitions that count."""
    beside = any(is_beside_load(ran.trace.marks) for ran in runs)
    return OthersWork(beside=beside, share=mean_share(runs))


def _reduced(
    repeater: Repeater, side: Side, valid: Sequence[int], metrics: Sequence[str]
) -> RunResult:
    """Reduce the valid repetitions, and read only what these metrics need."""
    model = repeater.current()
    uses_ceilings = not _CEILING_METRICS.isdisjoint(metrics)
    uses_memory = any(name.startswith("memory.") for name in metrics)
    uses_energy = any(name.startswith("energy.") for name in metrics)
    around = Readings(
        step=side.runs[-1].step,
        ceilings=ceilings_of(model) if uses_ceilings else None,
        memory=_memory(repeater, side) if uses_memory else (),
        energy=_energy(repeater, side) if uses_energy else None,
        load_s=model.opened.load_s,
    )
    return reduce([side.runs[index].trace for index in valid], repeater.workload, around)


def _memory(repeater: Repeater, side: Side) -> tuple[MemoryGauges, ...]:
    command = ReadMemory(workload=repeater.workload, repetition=side.next_repetition)
    read = repeater.current().call(command)
    return () if read.memory is None else (read.memory,)


def _energy(repeater: Repeater, side: Side) -> EnergyReading:
    command = ReadEnergy(
        workload=repeater.workload, repetition=side.next_repetition + 1, seconds=ENERGY_SECONDS
    )
    read = repeater.current().call(command)
    return read.energy


def _values(result: RunResult, metrics: Sequence[str]) -> dict[str, float | None]:
    """Return each metric's value, None where it is not measurable."""
    return {name: _value(result.metric(name)) for name in metrics}


def _value(quantity: Quantity) -> float | None:
    return None if isinstance(quantity, NotMeasurable) else float(quantity.value)


def _reasons(results: Sequence[RunResult], metrics: Sequence[str]) -> dict[str, str]:
    """Return why metrics are not measurable, by name; the last side's reason counts."""
    reasons = {}
    for result in results:
        for name in metrics:
            quantity = result.metric(name)
            if isinstance(quantity, NotMeasurable) and quantity.reason:
                reasons[name] = quantity.reason
    return reasons


def _spent_s(warm: WarmUp, side: Side) -> float:
    return sum(warm.durations_s) + sum(duration_s(ran.trace) for ran in side.runs)
