"""Turns what was measured into records and puts them away at once.

They go into the store, and into a file of JSON lines where one is named.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.benchmark import BENCHMARK, TIME, time_value
from pytest_llmperf.core.environment import environment_key
from pytest_llmperf.core.foreign_load import MARKED, was_under_load
from pytest_llmperf.core.metrics.quantities import TABLE
from pytest_llmperf.core.metrics.results import NO_SERVER, metric_value
from pytest_llmperf.core.metrics.serving import NO_SUCH
from pytest_llmperf.core.record import AGREEMENT, TASKS, ClaimRecord, Record
from pytest_llmperf.core.verdicts.judge import Finding
from pytest_llmperf.errors import StoreError
from pytest_llmperf.session.agreement import Question, metric_values
from pytest_llmperf.session.answers import Answers
from pytest_llmperf.session.environment import collect_environment
from pytest_llmperf.session.measured import Measured, Work
from pytest_llmperf.settings.settings import Settings
from pytest_llmperf.workers.pool import OpenModel
from pytest_llmperf.workloads import Serve, describe, describe_serve, recorded_serve

if TYPE_CHECKING:
    from pytest_llmperf.history.store import Store
    from pytest_llmperf.report.json_lines import JsonLines


_UNMEASURED: dict[str, Any] = {"metrics": (), "samples": {}, "warm_up": {}, "marks": ()}
"""What a record holds of what was not measured."""

Attempt = Callable[[Callable[[], object]], None]
"""Calls an action, and puts its StoreError off."""

_NOT_FAILED = frozenset({"PASS", "RECORDED", "UNDECIDED", "NOT COMPARABLE", "XPASS"})


class Recorder:
    """Keeps the records of the running test.

    The store has each the moment it exists; the file of --llmperf-json once its test is over, so
    that a run is one line.
    """

    def __init__(self, settings: Settings, session_id: str) -> None:
        self._settings = settings
        self._session_id = session_id
        self._store: Store | None = None
        self._lines: JsonLines | None = None
        self._lost_lines: list[StoreError] = []
        self.records: dict[str, Record] = {}
        self.test = ""
        self.label = ""
        self._rerun = 1
        self._began_s = time.monotonic()
        self.test_is_over = False

    def open(self) -> None:
        """Open the store and the file, before anything is measured.

        Raises StoreError for one that cannot be used.
        """
        if self._store is None and self._settings.store != "none":
            # SQLAlchemy, once a test will be stored.
            from pytest_llmperf.history.store import open_for_session  # noqa: PLC0415

            self._store = open_for_session(self._settings.store, folder=self._settings.root)
        if self._lines is None and self._settings.json is not None and not self._settings.disable:
            from pytest_llmperf.report.json_lines import JsonLines  # noqa: PLC0415

            lines = JsonLines(self._settings.json)
            lines.open()
            self._lines = lines

    def begin(self, test: str, label: str) -> None:
        """Start a test: the records so far belong to the one before."""
        self.test, self.label = test, label
        self.begin_rerun(1)

    def begin_rerun(self, n: int) -> None:
        """Start run n of the same test: the records so far keep the outcome that they have.

        The first is 1; a plugin that reruns failures makes more.
        """
        self._write_lines()
        self._rerun = n
        self._began_s = time.monotonic()
        self.records = {}
        self.test_is_over = False

    @property
    def store(self) -> Store | None:
        """The open history, if there is one."""
        return self._store

    def last_margins(self) -> list[float]:
        """Return how far the claims of the running test were from their bounds when it last ran.

        On the log scale; nothing where nothing is stored of it, or the store cannot be read.
        """
        with suppress(StoreError):
            newest = [] if self._store is None else self._store.records(test=self.test, limit=1)
            return [
                claim.margin
                for record in newest
                for claim in record.claims
                if claim.margin is not None
            ]
        return []

    def add(self, measured: Sequence[Measured], *, attempt: int = 1) -> list[Record]:
        """Write one record for each side.

        Attempts after the first measured again what looked like a regression.
        """
        records = [self._record_of(side, attempt) for side in measured]
        for record in records:
            self._write(record)
        return records

    def timed(self, model: OpenModel, rounds_s: Sequence[float], *, iterations: int) -> Record:
        """Write a record of the rounds of a benchmark, each in seconds of one call."""
        record = self._record(
            model,
            {"type": BENCHMARK},
            BENCHMARK,
            metrics=(time_value(rounds_s),),
            samples={TIME.name: tuple(rounds_s)},
            extra={"rounds": len(rounds_s), "iterations": iterations},
        )
        self._write(record)
        return record

    def keep(self, record: Record) -> Record:
        """Write a record of the running test that was made in another process."""
        self._write(record)
        return record

    def agree(self, model: OpenModel, question: Question, agreement: Agreement) -> None:
        """Write a record of the agreement itself.

        Runs of the same strategy in this test show it too, once the test is over.
        """
        record = self._record(
            model,
            _agreement_workload(question),
            str(question),
            metrics=metric_values(agreement),
            agreement=agreement.summary(),
        )
        self._write(record)

    def describe(self, model: OpenModel, workload: Work) -> Record:
        """Return the record that a run would have, without what is measured. Writes nothing."""
        if isinstance(workload, Serve):
            return self._record(model, recorded_serve(workload), describe_serve(workload))
        return self._record(model, msgspec.to_builtins(workload), describe(workload))

    def annotate(self, record_id: str, **extra: Any) -> None:
        """Add to what a record of the running test keeps beside its metrics, wherever it went."""
        record = self.records[record_id]
        annotated = self._replace(record, extra=record.extra | extra)
        if self._store is not None:
            self._store.update_outcome(
                annotated.id, annotated.outcome, annotated.claims, None, extra
            )

    def answered(self, model: OpenModel, answers: Answers) -> None:
        """Write a record of a task set's answers: how many were right."""
        tasks = answers.tasks
        n_items = len(tasks.items)
        workload = {
            "type": TASKS,
            "name": tasks.name,
            "content": tasks.content_hash,
            "items": n_items,
        }
        accuracy = metric_value("task.accuracy", TABLE["task.accuracy"], answers.accuracy)
        record = self._record(
            model,
            workload,
            f"{n_items} items of {tasks.name}",
            metrics=(accuracy,),
            samples={"correct": tuple(map(float, answers.correct))},
        )
        self._write(record)

    def finish(self, outcome: str, findings: Sequence[Finding]) -> None:
        """End the test: its outcome and claims go to every record it made."""
        claims = tuple(_claim(finding) for finding in findings)
        agreements = self._agreements()
        with _all_tried() as attempt:
            for record in list(self.records.values()):
                finished = self._replace(
                    record,
                    outcome=_outcome_of(record, outcome),
                    claims=claims,
                    agreement=record.agreement or agreements.get(record.strategy),
                )
                self._write_outcome(finished, attempt)

    @property
    def place(self) -> str:
        """Where records go, without passwords; empty where they are not stored."""
        return self._store.public_url if self._store is not None else ""

    def take_notices(self) -> list[str]:
        """Return what the store has to say since the last call.

        For example that a damaged file was put aside, or that records are in the spool.
        """
        if self._store is None:
            return []
        notices, self._store.notices = self._store.notices, []
        return notices

    def close(self) -> None:
        """Close the store and the file.

        Raises StoreError for what could be kept nowhere; both are closed then, too.
        """
        self._write_lines()
        self.records = {}
        store, self._store = self._store, None
        lines, self._lines = self._lines, None
        lost, self._lost_lines = self._lost_lines, []
        with _all_tried(lost) as attempt:
            if store is not None:
                attempt(store.close)
            if lines is not None:
                attempt(lines.close)

    def _write_lines(self) -> None:
        """Write the records of the test that is over, one line each.

        A file that cannot be written any more is an error of the session's end.
        """
        if self._lines is None:
            return
        for record in self.records.values():
            try:
                self._lines.append(record)
            except StoreError as error:
                self._lost_lines.append(error)

    def _replace(self, record: Record, **changes: object) -> Record:
        self.records[record.id] = msgspec.structs.replace(record, **changes)
        return self.records[record.id]

    def _write(self, record: Record) -> None:
        self.records[record.id] = record
        if self._store is not None:
            self._store.add(record)

    def _agreements(self) -> dict[str, Any]:
        """Return the agreements of the running test, by strategy."""
        return {
            record.strategy: record.agreement
            for record in self.records.values()
            if record.workload.get("type") == AGREEMENT
        }

    def _write_outcome(self, record: Record, attempt: Attempt) -> None:
        if self._store is not None:
            update = partial(
                self._store.update_outcome,
                record.id,
                record.outcome,
                record.claims,
                record.agreement,
            )
            attempt(update)

    def _record_of(self, side: Measured, attempt: int) -> Record:
        extra = dict(side.extra)
        if attempt > 1:
            extra["attempt"] = attempt
        if self.test_is_over:
            extra["phase"] = "teardown"
        values = side.result.metric_values()
        return self._record(
            side.model,
            side.workload,
            side.workload_text,
            effective=side.effective,
            metrics=tuple(value for value in values if value.reason not in (NO_SUCH, NO_SERVER)),
            samples=side.result.samples(),
            warm_up=side.warm_up,
            marks=side.marks,
            paired_with=side.pair,
            processes=side.processes,
            extra=extra,
        )

    def _record(
        self,
        model: OpenModel,
        workload: Mapping[str, Any],
        workload_text: str,
        *,
        extra: Mapping[str, Any] | None = None,
        **measured: Any,
    ) -> Record:
        """Return a record of the running test; what was not measured stays empty."""
        opened, plan = model.opened, model.plan
        environment = collect_environment(opened.device_facts, opened.versions, self._settings.root)
        values = {**_UNMEASURED, "effective": opened.effective, **measured}
        return Record(
            id=uuid.uuid4().hex,
            session_id=self._session_id,
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            test=self.test,
            label=self.label,
            workload=dict(workload),
            workload_text=workload_text,
            workload_key=_workload_key(workload),
            strategy=plan.strategy,
            engine=plan.engine,
            model=plan.model.name,
            model_hash=opened.content_hash,
            environment_key=environment_key(environment),
            environment=environment,
            extra={**(extra or {}), **self._which_rerun(), "test_s": self._seconds_into_test()},
            **values,
        )

    def _which_rerun(self) -> dict[str, int]:
        return {"rerun": self._rerun} if self._rerun > 1 else {}

    def _seconds_into_test(self) -> float:
        return round(time.monotonic() - self._began_s, 3)


def _workload_key(workload: Mapping[str, Any]) -> str:
    text = msgspec.json.encode(workload, order="sorted")
    return hashlib.sha256(text).hexdigest()[:16]


@contextmanager
def _all_tried(before: Sequence[StoreError] = ()) -> Iterator[Attempt]:
    """Give a function that calls an action and puts off its StoreError until the block ends.

    So whatever can be stored is stored. `before` are failures that were put off already.
    """
    failures = list(before)

    def attempt(action: Callable[[], object]) -> None:
        try:
            action()
        except StoreError as error:
            failures.append(error)

    yield attempt
    if failures:
        messages = dict.fromkeys(map(str, failures))
        raise StoreError(" ".join(messages)) from failures[0]


def _outcome_of(record: Record, outcome: str) -> str:
    """Return the test's outcome, or that a run was measured beside other programs.

    No later session is held against such a run; one that failed has failed.
    """
    return MARKED if was_under_load(record) and outcome in _NOT_FAILED else outcome


def _claim(finding: Finding) -> ClaimRecord:
    return ClaimRecord(
        text=finding.text,
        outcome=finding.outcome.value,
        margin=finding.margin,
        detail=finding.detail,
    )


def _agreement_workload(question: Question) -> dict[str, Any]:
    """Return what was compared, as a record holds a workload."""
    return {"type": AGREEMENT, **msgspec.to_builtins(question)}
