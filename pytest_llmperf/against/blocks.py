"""One block of a pair: its own warm-up and samples of one model, or of two in turn, reduced to one number a metric."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.core.metrics.offline import reduce
from pytest_llmperf.core.metrics.readings import Readings
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.trace import EnergyReading, MemoryGauges
from pytest_llmperf.core.verdicts.estimate import NotMeasurable
from pytest_llmperf.session import ceilings
from pytest_llmperf.session.run import ENERGY_SECONDS, Acquire, Repeater
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
    repeaters = [Repeater(each, workload) for each in acquire]
    sides = [
        Side(name=each.current().plan.strategy, repeat=each, next_repetition=first_repetition)
        for each in repeaters
    ]
    warmed = [warm_up(side, goal, progress) for side in sides]
    sample(sides, goal, progress)
    valid = valid_indices(sides)
    results = [
        _reduced(each, side, valid, metrics) for each, side in zip(repeaters, sides, strict=True)
    ]
    return BlockMeasured(
        values=tuple({name: _value(result, name) for name in metrics} for result in results),
        reasons={
            name: why for result in results for name in metrics if (why := _reason(result, name))
        },
        spent_s=sum(map(_spent_s, warmed, sides)),
    )


def _reduced(
    repeater: Repeater, side: Side, valid: Sequence[int], metrics: Sequence[str]
) -> RunResult:
    model = repeater.current()
    of_device = (
        ceilings.of(model)
        if any(name in ("mbu", "mfu", "prefill_mfu") for name in metrics)
        else None
    )
    around = Readings(
        step=side.taken[-1].step,
        ceilings=of_device,
        memory=_memory(repeater, side)
        if any(name.startswith("memory.") for name in metrics)
        else (),
        energy=_energy(repeater, side)
        if any(name.startswith("energy.") for name in metrics)
        else None,
        load_s=model.opened.load_s,
    )
    return reduce([side.taken[i].trace for i in valid], repeater.workload, around)


def _memory(repeater: Repeater, side: Side) -> tuple[MemoryGauges, ...]:
    read = repeater.current().call(
        ReadMemory(workload=repeater.workload, repetition=side.next_repetition)
    )
    return () if read.memory is None else (read.memory,)


def _energy(repeater: Repeater, side: Side) -> EnergyReading:
    command = ReadEnergy(
        workload=repeater.workload, repetition=side.next_repetition + 1, seconds=ENERGY_SECONDS
    )
    read = repeater.current().call(command)
    return read.energy


def _value(result: RunResult, name: str) -> float | None:
    quantity = result.metric(name)
    return None if isinstance(quantity, NotMeasurable) else float(quantity.value)


def _reason(result: RunResult, name: str) -> str:
    quantity = result.metric(name)
    return quantity.reason if isinstance(quantity, NotMeasurable) else ""


def _spent_s(warm: WarmUp, side: Side) -> float:
    return sum(warm.durations_s) + sum(duration_s(ran.trace) for ran in side.taken)
