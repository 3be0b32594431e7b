"""The main path: one workload on one model, or on two in turn.

Warm up, sample, read what is around, reduce. It never judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec

from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.foreign_load import is_beside_load, mean_share, under_load
from pytest_llmperf.core.loaded import TimedRun
from pytest_llmperf.core.metrics import record_extras
from pytest_llmperf.core.metrics.offline import reduce
from pytest_llmperf.core.metrics.origin import Origin
from pytest_llmperf.core.metrics.readings import ONE_DEVICE, Readings
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.metrics.scaling import scaled, scales
from pytest_llmperf.core.trace import Trace
from pytest_llmperf.core.verdicts.processes import KnownSpread, Processes
from pytest_llmperf.errors import BeyondCeiling
from pytest_llmperf.session import ceilings as device_ceilings
from pytest_llmperf.session.measured import Acquire, Measured
from pytest_llmperf.session.processes.blocks import Fresh, sample_processes, valid_sizes
from pytest_llmperf.session.processes.facts import process_facts
from pytest_llmperf.session.processes.renewal import ALIKE, ONE_WANTED, Renewal, dear_text
from pytest_llmperf.session.sampling import (
    MIN_WARM_UP,
    Goal,
    Progress,
    Side,
    WarmUp,
    duration_s,
    sample,
    valid_indices,
    warm_up,
)
from pytest_llmperf.strategies import require_in_effect
from pytest_llmperf.wire.commands import Describe, ReadCollectives, ReadEnergy, ReadMemory, Run
from pytest_llmperf.workers.pool import OpenModel
from pytest_llmperf.workloads import Workload, describe

ENERGY_SECONDS = 3.0
GIVEN_UP = "given_up"
"""What a record keeps where sampling was given up before its budget: why, in one sentence."""


def measure(
    acquire: Sequence[Acquire],
    workload: Workload,
    goal: Goal,
    progress: Progress,
    *,
    pair: str | None = None,
    renewal: Renewal = ALIKE,
) -> list[Measured]:
    """Measure one model, or two interleaved, over as many processes as pay. Never judges.

    Two models that do not fit together are loaded in turn: `acquire` gives whichever is asked for,
    and a model that was loaded again is warmed up again before its next repetition counts. Fresh
    processes come from `renewal`.

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
    sampled = _sampled(models, goal, progress, renewal)
    measured = [
        model.reduced(sampled, known, pair)
        for model, known in zip(models, sampled.known, strict=True)
    ]
    noted = [replace(side, extra={**side.extra, **_given_up(sides[0])}) for side in measured]
    return [_scaled(side, noted) for side in noted]


def _given_up(side: Side) -> dict[str, str]:
    return {GIVEN_UP: side.given_up} if side.given_up else {}


def _sampled(
    models: Sequence[WarmModel], goal: Goal, progress: Progress, renewal: Renewal
) -> Sampled:
    """Sample warm models in one process, or in several where fresh ones can be had and pay."""
    sides = [model.side for model in models]
    why_one = renewal.why_one or _one_is_enough(goal, renewal)
    if why_one is not None:
        sample(sides, goal, progress)
        sizes: tuple[int, ...] = ()
    else:
        fresh = _fresh(models, goal, progress, renewal)
        sizes = sample_processes(sides, goal, progress, fresh)
        why_one = "" if sizes else dear_text(fresh.unsampled_s(), goal.budget_s)
    valid = tuple(valid_indices(sides))
    processes = Processes(sizes=valid_sizes(sizes, valid), unknown=why_one)
    rests_on_one = bool(why_one) and not processes.are_several
    known = renewal.known() if rests_on_one else [{} for _ in models]
    return Sampled(valid=valid, processes=processes, known=known)


def _one_is_enough(goal: Goal, renewal: Renewal) -> str | None:
    """Return why one process is measured although others could be; None where several are.

    It is empty where processes do not differ.
    """
    if goal.processes == 1:
        return "" if renewal.alike else ONE_WANTED
    return "" if renewal.alike and goal.processes is None else None


def _fresh(models: Sequence[WarmModel], goal: Goal, progress: Progress, renewal: Renewal) -> Fresh:
    """Return how these models get fresh processes, and what one costs."""

    def renew() -> None:
        renewal.renew()
        if not renewal.in_turn:
            for model in models:
                model.warm_up_again(goal, progress)

    return Fresh(
        renew=renew,
        unsampled_s=lambda: sum(model.repeater.unsampled_s for model in models),
        repetition_s=sum(model.warmed.durations_s[-1] for model in models),
        in_turn=renewal.in_turn,
    )


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What all sides share: the valid repetitions and their processes.

    `known` is what is known of the spread between processes of each side, by metric.
    """

    valid: tuple[int, ...]
    processes: Processes
    known: Sequence[Mapping[str, KnownSpread]]


def run_once(acquire: Acquire, workload: Workload) -> TimedRun:
    """Run one repetition, for sessions that measure nothing."""
    return Repeater(acquire, workload)(0)


@dataclass
class Repeater:
    """Repeats a workload on a model that may have to be loaded again in between.

    `unsampled_s` are the seconds that starts, loads and warm-ups of its processes took.
    """

    acquire: Acquire
    workload: Workload
    unsampled_s: float = 0.0
    _last_model: OpenModel | None = field(default=None, repr=False)
    _counted_model: OpenModel | None = field(default=None, repr=False)

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
                self.unsampled_s += duration_s(_once(model, self.workload, repetition).trace)

    def is_warm(self) -> None:
        """Take the model that is loaded now for one that needs no warm-up."""
        self._last_model = self.current()

    def current(self) -> OpenModel:
        """Return the loaded model, and load it when it is not loaded."""
        model = self.acquire()
        if model is not self._counted_model:
            self._counted_model = model
            # A load in virtual time takes no other.
            self.unsampled_s += max(model.opened.load_s, model.started_s)
        return model

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
    repeater.unsampled_s += warmed.took_s
    model = repeater.current()
    return WarmModel(
        repeater=repeater,
        side=side,
        progress=progress,
        warmed=warmed,
        effective=_required_effective(model),
        load_s=model.opened.load_s,
    )


def _required_effective(model: OpenModel) -> Effective:
    """Return what is in effect on a warm model. Raises NotInEffect where a promise is not kept."""
    effective = model.call(Describe()).description.effective
    require_in_effect(effective, model.promises, when="warm")
    return effective


@dataclass(frozen=True, kw_only=True)
class WarmModel:
    """A model after its warm-up, which is sampled and then reduced.

    `effective` is what was in effect after warm-up, `load_s` how long its first process loaded.
    """

    repeater: Repeater
    side: Side
    progress: Progress
    warmed: WarmUp
    effective: Effective
    load_s: float

    def warm_up_again(self, goal: Goal, progress: Progress) -> None:
        """Load the model in a fresh process, and warm it up as the first one was.

        Raises NotInEffect where it then is not what its strategy promises.
        """
        self.repeater.current()
        self.repeater.is_warm()
        again = warm_up(self.side, goal, progress, at_most=len(self.warmed.durations_s))
        self.repeater.unsampled_s += again.took_s
        _required_effective(self.repeater.current())

    def reduced(
        self, sampled: Sampled, known: Mapping[str, KnownSpread], pair: str | None
    ) -> Measured:
        """Read what is around, and reduce the valid repetitions."""
        self.progress("reading memory", self.side.name, None)
        model, workload = self.repeater.current(), self.repeater.workload
        around = read_around(model, workload, self.side)._replace(load_s=self.load_s)
        used = [self.side.runs[index] for index in sampled.valid]
        origin = _origin(model, workload, pair)._replace(
            processes=sampled.processes,
            known=known,
            disturbed=any(is_beside_load(ran.trace.marks) for ran in used),
        )
        result = self._result(self._traces(sampled.valid), around, origin)
        return Measured(
            model=model,
            effective=self.effective,
            workload=msgspec.to_builtins(workload),
            workload_text=describe(workload),
            result=result,
            marks=self.side.marks,
            pair=pair,
            warm_up=asdict(self.warmed),
            processes=process_facts(result, sampled.processes, known),
            extra=self._extra(result, around, sampled.valid),
        )

    def _result(self, traces: list[Trace], around: Readings, origin: Origin) -> RunResult:
        """Reduce; ceilings that a run went beyond are measured again by the next one."""
        try:
            return reduce(traces, self.repeater.workload, around, origin)
        except BeyondCeiling:
            device_ceilings.forget(self.repeater.current())
            raise

    def _traces(self, valid: tuple[int, ...]) -> list[Trace]:
        return [self.side.runs[index].trace for index in valid]

    def _extra(self, result: RunResult, around: Readings, valid: tuple[int, ...]) -> dict[str, Any]:
        runs = self.side.runs
        used = [runs[index] for index in valid]
        return {
            "repetitions": len(runs),
            "valid": len(valid),
            **under_load([ran.trace.marks for ran in used], mean_share(used)),
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
        startup=model.opened.startup,
        collectives=_collectives(model, workload, repetition + 2),
    )


def _origin(model: OpenModel, workload: Workload, pair: str | None) -> Origin:
    return Origin(
        subject=model.plan.strategy,
        context=f"{describe(workload)} on {model.opened.device_name}",
        pair=pair,
    )


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
