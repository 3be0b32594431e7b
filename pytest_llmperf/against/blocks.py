"""One block of a pair: one model, or two in turn, reduced to one number a metric.

A block has its own process, warm-up and samples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

from pytest_llmperf.against.traffic import TrafficBlock
from pytest_llmperf.core.foreign_load import OthersWork, is_beside_load, mean_share
from pytest_llmperf.core.metrics.offline import reduce
from pytest_llmperf.core.metrics.readings import Readings
from pytest_llmperf.core.metrics.results import Quantity, RunResult
from pytest_llmperf.core.trace import EnergyReading, MemoryGauges
from pytest_llmperf.core.verdicts.estimate import NotMeasurable
from pytest_llmperf.core.verdicts.loads import Load
from pytest_llmperf.session.ceilings import ceilings_of
from pytest_llmperf.session.judges import MeasuringSession
from pytest_llmperf.session.measured import Loadable, Work
from pytest_llmperf.session.run import ENERGY_SECONDS, Repeater
from pytest_llmperf.session.sampling import (
    MAX_REPETITIONS,
    Goal,
    Progress,
    Side,
    duration_s,
    sample,
    valid_indices,
    warm_up,
)
from pytest_llmperf.wire.commands import MeasureBlock, ReadEnergy, ReadMemory
from pytest_llmperf.wire.results import BlockMeasured
from pytest_llmperf.workloads import Serve

ANSWERED = 20
"""Repetitions of a block whose answers are compared with those of the other side."""

_CEILING_METRICS = frozenset({"mbu", "mfu", "prefill_mfu"})


def measure_block(
    session: MeasuringSession,
    models: Sequence[Loadable],
    workload: Work,
    command: MeasureBlock,
) -> BlockMeasured:
    """Measure the command's metrics of each model once, in fresh workers where it says so.

    Its `first_repetition` numbers the prompts, so that no block repeats another's.

    Raises:
        InvalidRun: too few valid repetitions. WorkerError and others as `session.run.measure`.
    """
    if isinstance(workload, Serve):
        return _traffic_measured(TrafficBlock(session, models, workload, command), command)
    start_s = time.monotonic()
    fresh = command.fresh and session.renew(models)
    repeaters = [Repeater(model.load, workload) for model in models]
    sides = [repeater.side(command.first_repetition, allow_load=True) for repeater in repeaters]
    loading_s = time.monotonic() - start_s
    warming = _sampled(sides, command, session.progress)
    load = _load(sides, fresh=fresh, ready_s=loading_s + warming.took_s)
    results = [
        _reduced(repeater, side, valid_indices(sides), command.metrics)
        for repeater, side in zip(repeaters, sides, strict=True)
    ]
    return BlockMeasured(
        values=tuple(_values(result, command.metrics) for result in results),
        reasons=_reasons(results, command.metrics),
        spent_s=warming.timed_s + load.sampled_s,
        load=load,
        others=_others_work(sides),
        answers=tuple(map(_answers, sides)),
    )


@dataclass(frozen=True, kw_only=True)
class _Warming:
    """Seconds of the runs of a warm-up, and those that it took: a first run compiles before it."""

    timed_s: float
    took_s: float


def _traffic_measured(block: TrafficBlock, command: MeasureBlock) -> BlockMeasured:
    results = block.results()
    return BlockMeasured(
        values=tuple(_values(result, command.metrics) for result in results),
        reasons=_reasons(results, command.metrics),
        spent_s=block.load.sampled_s,
        load=block.load,
        others=block.others,
    )


def _answers(side: Side) -> dict[int, tuple[str, ...]]:
    """Return the texts of the first repetitions, by the number that their prompts have."""
    first = [run for run in side.runs if run.answers][:ANSWERED]
    return {run.trace.repetition: run.answers for run in first}


def _sampled(sides: Sequence[Side], command: MeasureBlock, progress: Progress) -> _Warming:
    """Warm each side up and sample them; return what the warm-up cost."""
    goal = Goal(precision=command.precision, budget_s=command.budget_s)
    warmed = [warm_up(side, goal, progress) for side in sides]
    sample(sides, goal, progress, at_most=command.repetitions or MAX_REPETITIONS)
    return _Warming(
        timed_s=math.fsum(duration for warm in warmed for duration in warm.durations_s),
        took_s=math.fsum(warm.took_s for warm in warmed),
    )


def _load(sides: Sequence[Side], *, fresh: bool, ready_s: float) -> Load:
    """Return what this block's process cost; of two models together where there are two."""
    valid = valid_indices(sides)
    return Load(
        fresh=fresh,
        ready_s=ready_s,
        sampled_s=math.fsum(duration_s(ran.trace) for side in sides for ran in side.runs),
        repetitions=min(len(side.runs) for side in sides),
        within=max(_within(side, valid) for side in sides),
    )


def _within(side: Side, valid: Sequence[int]) -> float:
    """Return the standard deviation of the logs of a side's durations; 0 where time stood still."""
    durations_s = [duration_s(side.runs[index].trace) for index in valid]
    return stdev(map(math.log, durations_s)) if min(durations_s) > 0 else 0.0


def _others_work(sides: Sequence[Side]) -> OthersWork:
    """Return what other programs did beside the repetitions that count."""
    runs = [side.runs[index] for side in sides for index in valid_indices(sides)]
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
        startup=model.opened.startup,
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
