"""One pytest session of llmperf: its settings, the models that are loaded, the records, and what each test declared."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pytest_llmperf import engines
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts.judge import Finding, claims
from pytest_llmperf.core.verdicts.unjudged_quantity import UnjudgedQuantity
from pytest_llmperf.devices.held import Gpus
from pytest_llmperf.errors import MemoryNotReturned
from pytest_llmperf.gate.gate import Gate
from pytest_llmperf.session.declare import DEFAULT_STRATEGY, Declaration, load_plan
from pytest_llmperf.session.model import Model
from pytest_llmperf.session.places import place_of_models
from pytest_llmperf.session.recorder import Recorder
from pytest_llmperf.session.run import Measured, measure
from pytest_llmperf.session.sampling import Goal
from pytest_llmperf.session.serving import Loaded, generator_program, measure_serving
from pytest_llmperf.settings.settings import Settings
from pytest_llmperf.workers.memory_check import OwnProcess
from pytest_llmperf.workers.pool import Channel, Pool, worker_logs
from pytest_llmperf.workers.this_host import ThisHost
from pytest_llmperf.workloads import Serve, Workload

if TYPE_CHECKING:
    from pytest_llmperf.against.comparison import Comparison
    from pytest_llmperf.against.side import BaseSide

ShowProgress = Callable[[str, str, str, float | None], None]


class LlmperfSession:
    """The way from a declared test to a recorded verdict.

    Made when the first llmperf test is collected.
    """

    def __init__(self, settings: Settings, show: ShowProgress) -> None:
        self.settings = settings
        self.id = uuid.uuid4().hex
        self.notes: list[str] = []
        self.recorder = Recorder(settings, self.id)
        self.gpus = Gpus(
            settings.gpus,
            wait_s=settings.wait_s,
            on_wait=lambda who: self.progress("waiting for a GPU", who, None),
        )
        self.host = ThisHost(self.gpus, wait_s=settings.wait_s, log_dir=worker_logs(settings.root))
        self.place = place_of_models(settings, self.host, self.progress)
        self.pool = Pool(
            self._start_worker,
            place=self.place,
            host=self.host,
            timeout_s=settings.timeout_s,
            progress=self.progress,
        )
        self.own = OwnProcess(lambda: self.gpus.held)
        self.gate = self._gate()
        self.comparison: Comparison | None = None
        self.base_side: BaseSide | None = None
        self._show = show
        self._declared = Declaration()

    @property
    def goal(self) -> Goal:
        """When sampling stops for the running test: its marker's budget and precision, else the session's."""
        precision = self._declared.precision
        return Goal(
            precision=precision / 100 if precision else self.settings.precision,
            budget_s=float(self._declared.budget or self.settings.budget_s),
        )

    def plan(
        self, declared: Declaration, strategy: str | None, *, engine: str | None = None
    ) -> LoadPlan:
        """The load plan of a test under a strategy.

        None takes the marker's, the option's, or the checkpoint's own dtype.
        """
        chosen = (
            strategy or declared.strategy or next(iter(self.settings.strategies), DEFAULT_STRATEGY)
        )
        plan = load_plan(declared, chosen, self.settings, place=self.place, engine=engine)
        self.place.require(plan)
        return plan

    def model(
        self, declared: Declaration, strategy: str | None, *, engine: str | None = None
    ) -> Model:
        """A model for a test; nothing is loaded yet."""
        return Model(self, self.plan(declared, strategy, engine=engine))

    def reference(self, declared: Declaration) -> Model:
        """What the `baseline` fixture gives: on the test's engine, and on transformers for a server, which shows no logits."""
        engine = (
            None if engines.engine(declared.engine).load_capabilities().logits else "transformers"
        )
        return self.model(declared, self.settings.reference, engine=engine)

    @contextmanager
    def test(self, nodeid: str, declared: Declaration) -> Iterator[list[Finding]]:
        """Around a test: its records and claims are kept together."""
        self._declared = declared
        self.recorder.begin(nodeid, declared.label)
        try:
            with claims(strict=self.settings.strict) as findings:
                yield findings
        finally:
            if self.comparison is not None:
                self.comparison.end()

    def measure(self, models: Sequence[Model], workload: Workload) -> list[RunResult]:
        """Measure one model, or two interleaved; record it.

        And where the session gates, judge it against its history.

        Where it is compared with another version, judge it side by side too. A base side of such a
        comparison measures when it is told instead, and gives what is not judged. Raises as
        `session.run.measure`, and Regression.
        """
        if self.base_side is not None:
            return self.base_side.measure(self, models, workload)
        measured = self._measure(models, workload)
        records = self.recorder.add(measured)
        if self.gate is not None:
            self.gate.judge(
                records, self._declared.gate, lambda: self._measure_again(models, workload)
            )
        if self.comparison is not None:
            self.comparison.judge(self, models, workload, records, self._declared.gate)
        return [each.result for each in measured]

    def serve(self, models: Sequence[Model], workload: Serve) -> list[RunResult]:
        """Put a load on one server, or on two in turn.

        Record it, say what its reader must know, and judge it where this gates.

        Side by side with another version nothing is judged of a load. Raises as
        `session.serving.measure_serving`, and Regression.
        """
        if self.settings.disable:
            return [
                RunResult.unmeasured("measuring is disabled (--llmperf-disable)", UnjudgedQuantity)
                for _ in models
            ]
        if self.base_side is not None or self.comparison is not None:
            reason = "a load on a server is not compared side by side with another version (--llmperf-against)"
            self.note(reason)
            return [RunResult.unmeasured(reason, UnjudgedQuantity) for _ in models]
        loaded = self._serve(models, workload)
        records = self.recorder.add_served(loaded)
        if self.gate is not None:
            self.gate.judge(
                records, self._declared.gate, lambda: self._serve_again(models, workload)
            )
        return [each.result for each in loaded]

    def renew(self, models: Sequence[Model]) -> bool:
        """Let these models be loaded in fresh workers when next used.

        False where the test itself holds one.
        """
        renewed = [self.pool.renew(model.plan) for model in models]
        return all(renewed)

    def release_except(self, plans: Sequence[LoadPlan]) -> None:
        """Close the models that the next test does not use, and give GPUs back that hold none or that others wait for.

        Raises MemoryNotReturned when the memory of a closed model is still in use.
        """
        try:
            self.pool.keep_only(plans)
        finally:
            self.pool.release_idle()

    def progress(self, phase: str, detail: str, eta_s: float | None) -> None:
        """Show what the running test is doing."""
        self._show(self.recorder.test, phase, detail, eta_s)

    def take_notes(self) -> list[str]:
        """The notes so far, for the report of the test that just ended; they are said once."""
        taken, self.notes = [*self.notes, *self.recorder.take_notices()], []
        return taken

    def note(self, text: str) -> None:
        """Something the summary must say, once."""
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
                for elsewhere in (
                    self.place,
                    self.comparison.base if self.comparison is not None else None,
                ):
                    if elsewhere is not None:
                        elsewhere.close()
            finally:
                self.recorder.close()

    def _measure(self, models: Sequence[Model], workload: Workload) -> list[Measured]:
        pair = uuid.uuid4().hex if len(models) > 1 else None
        with self.pool.undisturbed([model.plan for model in models]):
            return measure(
                [model.load for model in models], workload, self.goal, self.progress, pair=pair
            )

    def _serve(self, models: Sequence[Model], workload: Serve) -> list[Loaded]:
        pair = uuid.uuid4().hex if len(models) > 1 else None
        for model in models:
            program = generator_program(model.plan.engine, workload, self.settings.pythons)
        with self.pool.undisturbed([model.plan for model in models]):
            loaded = measure_serving(
                [model.load for model in models],
                workload,
                self.progress,
                pair=pair,
                program=program,
            )
        for each in loaded:
            for said in each.result.serving.notes() if each.result.serving is not None else ():
                self.note(
                    f"{self.recorder.test.partition('::')[2]} ({each.result.context}): {said}"
                )
        return loaded

    def _serve_again(self, models: Sequence[Model], workload: Serve) -> list[Record]:
        self.renew(models)
        return self.recorder.add_served(self._serve(models, workload), attempt=2)

    def _measure_again(self, models: Sequence[Model], workload: Workload) -> list[Record]:
        """In fresh workers, since what differs between processes is what a suspicion may be due to."""
        self.renew(models)
        return self.recorder.add(self._measure(models, workload), attempt=2)

    def _gate(self) -> Gate | None:
        if self.settings.gate is None:
            return None
        return Gate(self.settings, store=lambda: self.recorder.store, note=self.note)

    def _start_worker(self, plan: LoadPlan) -> Channel:
        from pytest_llmperf.workers.ranks import Ranks  # noqa: PLC0415 - only to load a model

        python = self.settings.pythons.get(plan.engine, sys.executable)
        group = self.place.start(plan, python)
        return group if plan.ranks == 1 else Ranks(group, plan)
