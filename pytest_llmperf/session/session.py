"""One pytest session of llmperf: its settings, its loaded models, its records, and its judges."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Protocol

from pytest_llmperf import engines
from pytest_llmperf.core.foreign_load import UNDER_LOAD
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.record import TOOK, Record
from pytest_llmperf.core.verdicts import give_up
from pytest_llmperf.core.verdicts.judge import Finding, claims
from pytest_llmperf.core.verdicts.processes import KnownSpread
from pytest_llmperf.core.verdicts.unjudged_quantity import UnjudgedQuantity
from pytest_llmperf.devices.held import Gpus
from pytest_llmperf.errors import MemoryNotReturned
from pytest_llmperf.gate.gate import Gate
from pytest_llmperf.instruments.beside_others import BesideOthers
from pytest_llmperf.session.declare import DEFAULT_STRATEGY, Declaration, load_plan
from pytest_llmperf.session.judges import Judge, Measurement, StandIn
from pytest_llmperf.session.measured import Loadable, Measured, Work
from pytest_llmperf.session.places import allows_load, looks_at_load, place_of_models
from pytest_llmperf.session.processes.known import known_spreads
from pytest_llmperf.session.processes.renewal import (
    Renewal,
    are_alike,
    runs_by_itself,
    why_not_renewed,
)
from pytest_llmperf.session.recorder import Recorder
from pytest_llmperf.session.run import GIVEN_UP, measure, run_once
from pytest_llmperf.session.sampling import Goal
from pytest_llmperf.session.serving import generator_program, measure_serving
from pytest_llmperf.session.worker_start import start_worker
from pytest_llmperf.settings.settings import Settings
from pytest_llmperf.workers.memory_check import OwnProcess
from pytest_llmperf.workers.pool import Channel, Pool, worker_logs
from pytest_llmperf.workers.this_host import ThisHost
from pytest_llmperf.workloads import Serve

ShowProgress = Callable[[str, str, str, float | None], None]

DISABLED = "measuring is disabled (--llmperf-disable)"


class Sample(Protocol):
    """Samples models under one workload, and reduces the samples."""

    def __call__(self, *, pair: str | None) -> list[Measured]:
        """Return one side for each model. `pair` is shared by sides that were interleaved."""


class LlmperfSession:
    """Takes a declared test to a recorded verdict.

    It is made when the first llmperf test is collected. `judges` judge each measurement, in their
    order; `stand_in` measures in place of the session.
    """

    def __init__(self, settings: Settings, show: ShowProgress) -> None:
        self.settings = settings
        self.id = uuid.uuid4().hex
        self.notes: list[str] = []
        self.recorder = Recorder(settings, self.id)
        self.gpus = self._gpus()
        self.host = ThisHost(
            self.gpus,
            wait_s=settings.wait_s,
            log_dir=worker_logs(settings.root),
            forks=settings.start_method == "forkserver",
        )
        self.place = place_of_models(settings, self.host, self.progress)
        self.pool = self._pool()
        self.own = OwnProcess(lambda: self.gpus.held)
        self.gate = self._gate()
        self.judges: list[Judge] = [] if self.gate is None else [self.gate]
        self.stand_in: StandIn | None = None
        self._show = show
        self._declared = Declaration()

    @property
    def goal(self) -> Goal:
        """When sampling stops for the running test.

        Its marker's budget and precision come before the session's.
        """
        precision = self._declared.precision
        return Goal(
            precision=precision / 100 if precision else self.settings.precision,
            budget_s=float(self._declared.budget or self.settings.budget_s),
            allow_load=allows_load(self.settings),
            needed=give_up.needed(self.recorder.last_margins()),
        )

    def plan(
        self, declared: Declaration, strategy: str | None, *, engine: str | None = None
    ) -> LoadPlan:
        """Return the load plan of a test under a strategy. Nothing is loaded.

        None takes the marker's, the option's, or the checkpoint's own dtype.
        """
        first_option = next(iter(self.settings.strategies), DEFAULT_STRATEGY)
        plan = load_plan(
            declared,
            strategy or declared.strategy or first_option,
            self.settings,
            place=self.place,
            engine=engine,
        )
        self.place.require(plan)
        return plan

    def reference_plan(self, declared: Declaration) -> LoadPlan:
        """Return the load plan of the `baseline` fixture.

        It is on the test's engine, and on transformers for a server, which shows no logits.
        """
        engine = None if _shows_logits(declared.engine) else "transformers"
        return self.plan(declared, self.settings.reference, engine=engine)

    @contextmanager
    def test(self, nodeid: str, declared: Declaration) -> Iterator[list[Finding]]:
        """Keep a test's records and claims together while it runs."""
        self._declared = declared
        self.recorder.begin(nodeid, declared.label)
        with claims(strict=self.settings.strict) as findings:
            yield findings

    def measure(
        self, models: Sequence[Loadable], workload: Work, *, processes: int | None = None
    ) -> list[RunResult]:
        """Measure one model, or two interleaved; record it, and have every judge judge it.

        `processes` are how many are wanted; None takes the option's.

        Raises as `session.run.measure` and `session.serving.measure_serving`, and Regression.
        """
        if self.settings.disable:
            return [_unmeasured(model, workload) for model in models]
        if self.stand_in is not None:
            return self.stand_in.measure(models, workload)
        measured = self._sample(models, workload, processes)
        self._judge(self.recorder.add(measured), models, workload, processes)
        return [side.result for side in measured]

    def renew(self, models: Sequence[Loadable]) -> bool:
        """Let these models be loaded in fresh workers when next used.

        Returns False where one cannot be had fresh: the test itself holds it, or it is a server
        that runs by itself.
        """
        plans = [model.plan for model in models]
        renewed = [self.pool.renew(plan) for plan in plans]
        return all(renewed) and not any(map(runs_by_itself, plans))

    def release_except(self, plans: Sequence[LoadPlan]) -> None:
        """Close the models that the next test does not use.

        GPUs that hold none, or that others wait for, are given back. Raises MemoryNotReturned when
        the memory of a closed model is still in use.
        """
        try:
            self.pool.keep_only(plans)
        finally:
            self.pool.release_idle()

    def progress(self, phase: str, detail: str, eta_s: float | None) -> None:
        """Show what the running test is doing."""
        self._show(self.recorder.test, phase, detail, eta_s)

    def take_notes(self) -> list[str]:
        """Return the notes since the last call, for the report of the test that just ended."""
        notes = [*self.notes, *self.recorder.take_notices()]
        self.notes = []
        return notes

    def note(self, text: str) -> None:
        """Have the summary say something, once."""
        if text not in self.notes:
            self.notes.append(text)

    def close(self) -> None:
        """End every worker and close the store."""
        try:
            # A test that ended has said so; one that was cut off has more to say.
            with suppress(MemoryNotReturned):
                self.pool.close()
                self.gpus.release()
        finally:
            try:
                self.place.close()
            finally:
                self.recorder.close()

    def _sample(
        self, models: Sequence[Loadable], workload: Work, processes: int | None = None
    ) -> list[Measured]:
        """Sample the models while no other session uses the device."""
        sample = self._sampler(models, workload, processes)
        pair = uuid.uuid4().hex if len(models) > 1 else None
        plans = [model.plan for model in models]
        start_s = time.monotonic()
        with self.pool.undisturbed(plans):
            beside = self._beside(plans)
            with beside:
                measured = sample(pair=pair)
        for side in measured:
            self._note_serving(side.result)
            self._note_unproved(side)
        self._note_load(measured, beside)
        self._note_given_up(measured)
        took_s = round(time.monotonic() - start_s, 3)
        return [replace(side, extra={**side.extra, TOOK: took_s}) for side in measured]

    def _judge(
        self,
        records: Sequence[Record],
        models: Sequence[Loadable],
        workload: Work,
        processes: int | None,
    ) -> None:
        """Have every judge judge the records of one measurement. Raises Regression."""
        attempts = count(2)
        measurement = Measurement(
            models=models,
            workload=workload,
            again=lambda: self._sample_again(models, workload, processes, next(attempts)),
        )
        for judge in self.judges:
            judge.judge(records, self._declared.gate, measurement)

    def _sample_again(
        self,
        models: Sequence[Loadable],
        workload: Work,
        processes: int | None,
        attempt: int,
    ) -> list[Record]:
        """Sample in fresh workers: a suspicion may be due to what differs between processes."""
        self.renew(models)
        measured = self._sample(models, workload, processes)
        return self.recorder.add(measured, attempt=attempt)

    def _sampler(self, models: Sequence[Loadable], workload: Work, processes: int | None) -> Sample:
        """Return how this kind of work is sampled and reduced. Raises as `generator_program`."""
        acquire = [model.load for model in models]
        renewal = self._renewal(models, workload)
        wanted = processes or self.settings.processes
        if (wanted or 1) > 1 and renewal.why_one:
            self.note(f"{self.recorder.test}: measured in one process: {renewal.why_one}")
        if not isinstance(workload, Serve):
            goal = replace(self.goal, processes=wanted)
            return partial(measure, acquire, workload, goal, self.progress, renewal=renewal)
        for model in models:
            program = generator_program(model.plan.engine, workload, self.settings.pythons)
        return partial(
            measure_serving,
            acquire,
            workload,
            self.progress,
            program=program,
            processes=wanted,
            renewal=renewal,
            allow_load=allows_load(self.settings),
        )

    def _beside(self, plans: Sequence[LoadPlan]) -> BesideOthers:
        """Return the look at other programs that stands around a measurement."""
        return BesideOthers(
            here=looks_at_load(plans, self.settings),
            allow=allows_load(self.settings),
            show=lambda text: self.progress("waiting for a quiet machine", text, None),
        )

    def _note_load(self, measured: Sequence[Measured], beside: BesideOthers) -> None:
        """Note that other programs worked beside what was measured, where that was allowed."""
        if any(UNDER_LOAD in side.extra for side in measured):
            test = self.recorder.test.partition("::")[2]
            self.note(f"{test} was measured beside other programs: {beside.seen}")

    def _note_given_up(self, measured: Sequence[Measured]) -> None:
        """Note why sampling ended before its budget without an interval that decides anything."""
        test = self.recorder.test.partition("::")[2]
        for side in measured:
            if GIVEN_UP in side.extra:
                self.note(f"{test} ({side.result.subject}): {side.extra[GIVEN_UP]}")

    def _renewal(self, models: Sequence[Loadable], workload: Work) -> Renewal:
        """Return how these models get fresh processes, or why they cannot."""
        plans = [model.plan for model in models]
        return Renewal(
            renew=partial(self.renew, models),
            why_one=why_not_renewed(plans, adopted=self.pool.is_adopted),
            alike=are_alike(plans),
            in_turn=not self.pool.fits_together(*dict.fromkeys(plans)),
            known=lambda: [self._known(model, workload) for model in models],
        )

    def _known(self, model: Loadable, workload: Work) -> Mapping[str, KnownSpread]:
        """Return what is known of how much processes of this measurement differ, by metric."""
        would_be = self.recorder.describe(model.load(), workload)
        return known_spreads(self.settings, self.recorder.store, would_be)

    def _note_serving(self, result: RunResult) -> None:
        """Note what a reader of a server's numbers must know."""
        if result.serving is None:
            return
        test = self.recorder.test.partition("::")[2]
        for text in result.serving.notes():
            self.note(f"{test} ({result.context}): {text}")

    def _note_unproved(self, side: Measured) -> None:
        """Note which settings of a server nothing proves."""
        names = side.effective.unproved
        if names:
            self.note(
                f"{side.result.subject or side.effective.engine}: the server neither says nor "
                f"shows its {', '.join(names)}: not proved"
            )

    def _gate(self) -> Gate | None:
        if self.settings.gate is None:
            return None
        return Gate(self.settings, store=lambda: self.recorder.store, note=self.note)

    def _gpus(self) -> Gpus:
        return Gpus(
            self.settings.gpus,
            wait_s=self.settings.wait_s,
            on_wait=lambda holder: self.progress("waiting for a GPU", holder, None),
        )

    def _pool(self) -> Pool:
        return Pool(
            self._start_worker,
            place=self.place,
            host=self.host,
            timeout_s=self.settings.timeout_s,
            progress=self.progress,
        )

    def _start_worker(self, plan: LoadPlan) -> Channel:
        channel = start_worker(plan, self.settings, self.place)
        if channel.fork_failure:
            self.note(
                f"{plan.model.name} {plan.strategy}: its worker was started as a new program, "
                f"because {channel.fork_failure}."
            )
        return channel


def _unmeasured(model: Loadable, workload: Work) -> RunResult:
    """Run a workload once without measuring it; traffic is not sent at all."""
    if not isinstance(workload, Serve):
        run_once(model.load, workload)
    return RunResult.unmeasured(DISABLED, UnjudgedQuantity)


def _shows_logits(engine: str) -> bool:
    return engines.engine(engine).load_capabilities().logits
