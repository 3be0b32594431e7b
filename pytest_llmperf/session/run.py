"""The main path: one workload on one model, or on two in turn.

Warm up, sample, read what is around, reduce. It never judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec

from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.foreign_load import mean_share, under_load
from pytest_llmperf.core.loaded import TimedRun
from pytest_llmperf.core.metrics import record_extras
from pytest_llmperf.core.metrics.offline import reduce
from pytest_llmperf.core.metrics.origin import Origin
from pytest_llmperf.core.metrics.readings import ONE_DEVICE, Readings
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.metrics.scaling import scaled, scales
from pytest_llmperf.core.trace import Mark, Trace
from pytest_llmperf.session import ceilings as device_ceilings
from pytest_llmperf.session.measured import Acquire, Measured
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
    repeaters = [Repeater(load, workload) for load in acquire]
    sides = [repeater.side(allow_load=goal.allow_load) for repeater in repeaters]
    models = [
        _warmed_up(repeater, side, goal, progress)
        for repeater, side in zip(repeaters, sides, strict=True)
    ]
    sample(sides, goal, progress)
    valid = tuple(valid_indices(sides))
    measured = [model.reduced(valid, pair) for model in models]
    return [_scaled(side, measured) for side in measured]


def run_once(acquire: Acquire, workload: Workload) -> TimedRun:
    """Run one repetition, for sessions that measure nothing."""
    return Repeater(acquire, workload)(0)


@dataclass
class Repeater:
    """Repeats a workload on a model that may have to be loaded again in between."""

    acquire: Acquire
    workload: Workload
    _last_model: OpenModel | None = field(default=None, repr=False)

    def __call__(self, repetition: int) -> TimedRun:
        """Run one repetition.

        Two unmeasured ones come first when the model was loaded anew since the last.
        """
        model = self.current()
        self._warm_up_after_load(model, repetition)
        self._last_model = model
        return _once(model, self.workload, repetition)

    def _is_loaded_anew(self, model: OpenModel) -> bool:
        """Whether repetitions were run, and another load of the model is open now."""
        return self._last_model is not None and model is not self._last_model

    def _warm_up_after_load(self, model: OpenModel, repetition: int) -> None:
        if self._is_loaded_anew(model):
            for _ in range(MIN_WARM_UP):
                _once(model, self.workload, repetition)

    def current(self) -> OpenModel:
        """Return the loaded model, and load it when it is not loaded."""
        return self.acquire()

    def side(self, first_repetition: int = 0, *, allow_load: bool = False) -> Side:
        """Load the model, and return a side of its own, named after the model's strategy."""
        return Side(
            name=self.current().plan.strategy,
            repeat=self,
            next_repetition=first_repetition,
            allow_load=allow_load,
        )


def _once(model: OpenModel, workload: Workload, repetition: int) -> TimedRun:
    return model.call(Run(workload=workload, repetition=repetition)).run


def _warmed_up(repeater: Repeater, side: Side, goal: Goal, progress: Progress) -> WarmModel:
    """Warm up, and check what is in effect then.

    Compilation, the cache and the batching show in runs alone. Raises NotInEffect.
    """
    warmed = warm_up(side, goal, progress)
    return WarmModel(
        repeater=repeater,
        side=side,
        progress=progress,
        warmed=warmed,
        effective=_required_effective(repeater.current()),
    )


def _required_effective(model: OpenModel) -> Effective:
    """Return what is in effect on a warm model. Raises NotInEffect where a promise is not kept."""
    effective = model.call(Describe()).description.effective
    require_in_effect(effective, model.promises, when="warm")
    return effective


@dataclass(frozen=True, kw_only=True)
class WarmModel:
    """A model after its warm-up, which is sampled and then reduced.

    `effective` is what was in effect after warm-up.
    """

    repeater: Repeater
    side: Side
    progress: Progress
    warmed: WarmUp
    effective: Effective

    def reduced(self, valid: tuple[int, ...], pair: str | None) -> Measured:
        """Read what is around, and reduce the valid repetitions."""
        self.progress("reading memory", self.side.name, None)
        model, workload = self.repeater.current(), self.repeater.workload
        around = read_around(model, workload, self.side)
        result = self._result(model, around, valid, pair)
        return Measured(
            model=model,
            effective=self.effective,
            workload=msgspec.to_builtins(workload),
            workload_text=describe(workload),
            result=result,
            marks=self.side.marks,
            pair=pair,
            warm_up=asdict(self.warmed),
            extra=self._extra(result, around, valid),
        )

    def _result(
        self, model: OpenModel, around: Readings, valid: tuple[int, ...], pair: str | None
    ) -> RunResult:
        used = [self.side.runs[index] for index in valid]
        origin = _origin(model, self.repeater.workload, pair)._replace(
            disturbed=bool(under_load(_marks(used)))
        )
        return reduce(self._traces(valid), self.repeater.workload, around, origin)

    def _traces(self, valid: tuple[int, ...]) -> list[Trace]:
        return [self.side.runs[index].trace for index in valid]

    def _extra(self, result: RunResult, around: Readings, valid: tuple[int, ...]) -> dict[str, Any]:
        runs = self.side.runs
        used = [runs[index] for index in valid]
        return {
            "repetitions": len(runs),
            "valid": len(valid),
            **under_load(_marks(used), mean_share(used)),
            **_memory_of_ranks(result),
            **record_extras.ceilings(around.ceilings, runs[-1].step),
            **record_extras.itl_by_position(self._traces(valid)),
        }


def read_around(model: OpenModel, workload: Workload, side: Side) -> Readings:
    """Read memory in a pass of its own, energy over at least three seconds, and the ceilings."""
    repetition = side.next_repetition
    memory = model.call(ReadMemory(workload=workload, repetition=repetition))
    energy = model.call(
        ReadEnergy(workload=workload, repetition=repetition + 1, seconds=ENERGY_SECONDS)
    )
    return Readings(
        step=side.runs[-1].step,
        ceilings=device_ceilings.ceilings_of(model),
        memory=memory.ranks or (() if memory.memory is None else (memory.memory,)),
        energy=energy.energy,
        load_s=model.opened.load_s,
        collectives=_collectives(model, workload, repetition + 2),
    )


def _origin(model: OpenModel, workload: Workload, pair: str | None) -> Origin:
    return Origin(
        subject=model.plan.strategy,
        context=f"{describe(workload)} on {model.opened.device_name}",
        pair=pair,
    )


def _marks(runs: Sequence[TimedRun]) -> list[tuple[Mark, ...]]:
    return [ran.trace.marks for ran in runs]


def _collectives(model: OpenModel, workload: Workload, repetition: int) -> float | str:
    if model.plan.ranks == 1:
        return ONE_DEVICE
    read = model.call(ReadCollectives(workload=workload, repetition=repetition))
    return read.reason if read.share is None else read.share


def _memory_of_ranks(result: RunResult) -> dict[str, Any]:
    """Return each rank's own memory, where there are several."""
    ranks = result.memory.ranks
    if len(ranks) <= 1:
        return {}
    return {"memory_ranks": [msgspec.to_builtins(gauges) for gauges in ranks]}


def _scaled(side: Measured, sides: Sequence[Measured]) -> Measured:
    """Add what a model on several devices gains over the same model on fewer, the other side."""
    plan = side.model.plan
    for other in sides:
        other_plan = other.model.plan
        placed = (plan, side.model.opened.effective)
        if scales(placed, (other_plan, other.model.opened.effective)):
            result = scaled(side.result, other.result, plan.ranks / other_plan.ranks)
            return replace(side, result=result)
    return side
