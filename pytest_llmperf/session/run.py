"""The main path: one workload on one model, or on two in turn.

Warm up, sample, read what is around, reduce, record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.loaded import TimedRun
from pytest_llmperf.core.metrics.offline import reduce
from pytest_llmperf.core.metrics.origin import Origin
from pytest_llmperf.core.metrics.readings import ONE_DEVICE, Readings
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.metrics.scaling import scaled, scales
from pytest_llmperf.core.trace import Ceilings, Mark
from pytest_llmperf.session import ceilings as device_ceilings
from pytest_llmperf.session.sampling import (
    MIN_WARM_UP,
    Goal,
    Progress,
    Side,
    WarmUp,
    sample,
    valid_indices,
    warm_up,
)
from pytest_llmperf.strategies import require_in_effect
from pytest_llmperf.wire.commands import Describe, ReadCollectives, ReadEnergy, ReadMemory, Run
from pytest_llmperf.workers.pool import OpenModel
from pytest_llmperf.workloads import Workload, describe

ENERGY_SECONDS = 3.0

Acquire = Callable[[], OpenModel]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One side of a measurement: the reduced result, and everything it was made from.

    `effective` is as warm-up left it.
    """

    model: OpenModel
    effective: Effective
    workload: Workload
    result: RunResult
    warm_up: WarmUp
    taken: tuple[TimedRun, ...]
    valid: tuple[int, ...]
    marks: tuple[Mark, ...]
    pair: str | None
    ceilings: Ceilings | None = None


def measure(
    acquire: Sequence[Acquire],
    workload: Workload,
    goal: Goal,
    progress: Progress,
    *,
    pair: str | None = None,
) -> list[Measured]:
    """Measure one model, or two interleaved. Never judges.

    Two models that do not fit together are loaded in turn: `acquire` gives whichever is asked for,
    and a model that was loaded again is warmed up again before its next repetition counts.

    Raises:
        NotInEffect: after warm-up a promise does not hold (compilation, the cache in use).
        InvalidRun: too few valid repetitions.
        WorkerError: a worker died, hung or ran out of memory.
    """
    repeaters = [Repeater(each, workload) for each in acquire]
    sides = [Side(name=each.current().plan.strategy, repeat=each) for each in repeaters]
    warmed = [
        _warm(each, side, goal, progress) for each, side in zip(repeaters, sides, strict=True)
    ]
    sample(sides, goal, progress)
    valid = tuple(valid_indices(sides))
    measured = [
        _reduced(each, side, warm, valid, pair, progress)
        for each, side, warm in zip(repeaters, sides, warmed, strict=True)
    ]
    return [_scaled(each, measured) for each in measured]


def run_once(acquire: Acquire, workload: Workload) -> TimedRun:
    """One repetition, for sessions that measure nothing."""
    return Repeater(acquire, workload)(0)


@dataclass
class Repeater:
    """Repeats a workload on a model that may have to be loaded again in between."""

    acquire: Acquire
    workload: Workload
    _last: OpenModel | None = field(default=None, repr=False)

    def __call__(self, repetition: int) -> TimedRun:
        """One repetition.

        Two unmeasured ones come first when the model was loaded anew since the last.
        """
        model = self.current()
        if self._last is not None and model is not self._last:
            for _ in range(MIN_WARM_UP):
                _once(model, self.workload, repetition)
        self._last = model
        return _once(model, self.workload, repetition)

    def current(self) -> OpenModel:
        """The loaded model, loading it when it is not."""
        return self.acquire()


def _once(model: OpenModel, workload: Workload, repetition: int) -> TimedRun:
    return model.call(Run(workload=workload, repetition=repetition)).run


def _warm(
    repeater: Repeater, side: Side, goal: Goal, progress: Progress
) -> tuple[WarmUp, Effective]:
    """What warm-up saw, and what is in effect after it: compilation, the cache and the batching show in runs alone."""
    warm = warm_up(side, goal, progress)
    model = repeater.current()
    effective = model.call(Describe()).description.effective
    require_in_effect(effective, model.promises, when="warm")
    return warm, effective


def _reduced(
    repeater: Repeater,
    side: Side,
    warmed: tuple[WarmUp, Effective],
    valid: tuple[int, ...],
    pair: str | None,
    progress: Progress,
) -> Measured:
    progress("reading memory", side.name, None)
    model, workload = repeater.current(), repeater.workload
    around = read_around(model, workload, side)
    origin = Origin(
        subject=model.plan.strategy,
        context=f"{describe(workload)} on {model.opened.device_name}",
        pair=pair,
    )
    result = reduce([side.taken[i].trace for i in valid], workload, around, origin)
    marks = tuple(mark for ran in side.taken for mark in ran.trace.marks)
    return Measured(
        model=model,
        effective=warmed[1],
        workload=workload,
        result=result,
        warm_up=warmed[0],
        taken=tuple(side.taken),
        valid=valid,
        marks=marks,
        pair=pair,
        ceilings=around.ceilings,
    )


def read_around(model: OpenModel, workload: Workload, side: Side) -> Readings:
    """Memory in a pass of its own, energy over at least three seconds, and the device's ceilings (cached per device)."""
    memory = model.call(ReadMemory(workload=workload, repetition=side.next_repetition))
    energy = model.call(
        ReadEnergy(workload=workload, repetition=side.next_repetition + 1, seconds=ENERGY_SECONDS)
    )
    return Readings(
        step=side.taken[-1].step,
        ceilings=device_ceilings.of(model),
        memory=memory.ranks or (() if memory.memory is None else (memory.memory,)),
        energy=energy.energy,
        load_s=model.opened.load_s,
        collectives=_collectives(model, workload, side.next_repetition + 2),
    )


def _collectives(model: OpenModel, workload: Workload, repetition: int) -> float | str:
    if model.plan.ranks == 1:
        return ONE_DEVICE
    read = model.call(ReadCollectives(workload=workload, repetition=repetition))
    return read.reason if read.share is None else read.share


def _scaled(side: Measured, both: Sequence[Measured]) -> Measured:
    """A model on several devices, with what it gains over the other side where that is the same model on fewer."""
    for other in both:
        ours, theirs = ((each.model.plan, each.model.opened.effective) for each in (side, other))
        if scales(ours, theirs):
            return replace(
                side, result=scaled(side.result, other.result, ours[0].ranks / theirs[0].ranks)
            )
    return side
