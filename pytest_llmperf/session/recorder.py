"""Turns what was measured into records and puts them away at once: into the store, and as JSON lines when asked."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.benchmark import BENCHMARK, TIME, time_value
from pytest_llmperf.core.environment import environment_key
from pytest_llmperf.core.metrics import record_extras
from pytest_llmperf.core.metrics.quantities import TABLE
from pytest_llmperf.core.metrics.results import metric_value
from pytest_llmperf.core.metrics.serving import NO_SUCH
from pytest_llmperf.core.record import AGREEMENT, TASKS, ClaimRecord, Environment, Record
from pytest_llmperf.core.verdicts.judge import Finding
from pytest_llmperf.errors import StoreError
from pytest_llmperf.session.agreement import Question, metric_values
from pytest_llmperf.session.answers import Answers
from pytest_llmperf.session.environment import collect_environment
from pytest_llmperf.settings.settings import Settings
from pytest_llmperf.workers.pool import OpenModel
from pytest_llmperf.workloads import Workload, describe, describe_serve, recorded_serve

if TYPE_CHECKING:
    from pytest_llmperf.history.store import Store
    from pytest_llmperf.report.json_lines import JsonLines
    from pytest_llmperf.session.run import Measured
    from pytest_llmperf.session.serving import Loaded


class Recorder:
    """Keeps the records of the running test, and writes each the moment it exists."""

    def __init__(self, settings: Settings, session_id: str) -> None:
        self._settings = settings
        self._session_id = session_id
        self._store: Store | None = None
        self._lines: JsonLines | None = None
        self.records: dict[str, Record] = {}
        self.test = ""
        self.label = ""
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
        if self._lines is None and self._settings.json is not None:
            from pytest_llmperf.report.json_lines import JsonLines  # noqa: PLC0415

            self._lines = JsonLines(self._settings.json)

    def begin(self, test: str, label: str) -> None:
        """A test starts: what was kept belongs to the one before."""
        self.test, self.label = test, label
        self._began_s = time.monotonic()
        self.records = {}
        self.test_is_over = False

    @property
    def store(self) -> Store | None:
        """The open history, if there is one."""
        return self._store

    def add(self, measured: Sequence[Measured], *, attempt: int = 1) -> list[Record]:
        """Write one record for each side.

        Attempts after the first measured again what looked like a regression.
        """
        records = [self._record_of_run(side, attempt) for side in measured]
        for record in records:
            self._write(record)
        return records

    def add_served(self, loaded: Sequence[Loaded], *, attempt: int = 1) -> list[Record]:
        """Write one record for each side of a load on servers."""
        records = [self._record_of_served(side, attempt) for side in loaded]
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
            {"type": AGREEMENT, **msgspec.to_builtins(question)},
            str(question),
            metrics=metric_values(agreement),
            agreement=agreement.summary(),
        )
        self._write(record)

    def describe(self, model: OpenModel, workload: Workload) -> Record:
        """The record that a run would have, without what is measured. Nothing is written."""
        return self._record(model, msgspec.to_builtins(workload), describe(workload))

    def annotate(self, record_id: str, **extra: Any) -> None:
        """Add to what a record of the running test keeps beside its metrics, in the store and in the file as well."""
        record = self.records[record_id]
        done = self._replace(record, extra=record.extra | extra)
        if self._store is not None:
            self._store.update_outcome(done.id, done.outcome, done.claims, None, extra)
        if self._lines is not None:
            self._lines.append(done)

    def answered(self, model: OpenModel, answers: Answers) -> None:
        """Write a record of a task set's answers: how many were right."""
        tasks = answers.tasks
        self._write(
            self._record(
                model,
                {
                    "type": TASKS,
                    "name": tasks.name,
                    "content": tasks.content_hash,
                    "items": len(tasks.items),
                },
                f"{len(tasks.items)} items of {tasks.name}",
                metrics=(metric_value("task.accuracy", TABLE["task.accuracy"], answers.accuracy),),
                samples={"correct": tuple(map(float, answers.correct))},
            ),
        )

    def finish(self, outcome: str, findings: Sequence[Finding]) -> None:
        """The test is over: its outcome and claims go to every record it made."""
        claims = tuple(_claim(finding) for finding in findings)
        agreements = {
            r.strategy: r.agreement
            for r in self.records.values()
            if r.workload.get("type") == AGREEMENT
        }
        with _all_tried() as attempt:
            for record in list(self.records.values()):
                agreement = record.agreement or agreements.get(record.strategy)
                done = self._replace(record, outcome=outcome, claims=claims, agreement=agreement)
                if self._store is not None:
                    attempt(
                        partial(
                            self._store.update_outcome, done.id, outcome, claims, done.agreement
                        )
                    )
                if self._lines is not None:
                    attempt(partial(self._lines.append, done))

    @property
    def place(self) -> str:
        """Where records go, without passwords; empty for nowhere."""
        return self._store.shown if self._store is not None else ""

    def take_notices(self) -> list[str]:
        """What the store has to say since last asked: a damaged file put aside, records in the spool."""
        if self._store is None:
            return []
        taken, self._store.notices = self._store.notices, []
        return taken

    def close(self) -> None:
        """Close the store and the file.

        Raises StoreError for what could be kept nowhere; both are closed then, too.
        """
        store, self._store = self._store, None
        lines, self._lines = self._lines, None
        with _all_tried() as attempt:
            if store is not None:
                attempt(store.close)
            if lines is not None:
                attempt(lines.close)

    def _replace(self, record: Record, **changes: object) -> Record:
        self.records[record.id] = msgspec.structs.replace(record, **changes)
        return self.records[record.id]

    def _write(self, record: Record) -> None:
        self.records[record.id] = record
        with _all_tried() as attempt:
            if self._store is not None:
                attempt(partial(self._store.add, record))
            if self._lines is not None:
                attempt(partial(self._lines.append, record))

    def _record_of_run(self, side: Measured, attempt: int) -> Record:
        return self._record(
            side.model,
            msgspec.to_builtins(side.workload),
            describe(side.workload),
            effective=side.effective,
            metrics=side.result.metric_values(),
            samples=side.result.samples(),
            warm_up={"durations_s": side.warm_up.durations_s, "stable": side.warm_up.stable},
            marks=side.marks,
            paired_with=side.pair,
            extra={
                "repetitions": len(side.taken),
                "valid": len(side.valid),
                **_ranks(side),
                **record_extras.ceilings(side.ceilings, side.taken[-1].step),
                **record_extras.itl_by_position([side.taken[at].trace for at in side.valid]),
                **({"attempt": attempt} if attempt > 1 else {}),
                **({"phase": "teardown"} if self.test_is_over else {}),
            },
        )

    def _record_of_served(self, side: Loaded, attempt: int) -> Record:
        return self._record(
            side.model,
            recorded_serve(side.workload),
            describe_serve(side.workload),
            metrics=tuple(
                value for value in side.result.metric_values() if value.reason != NO_SUCH
            ),
            samples=side.result.samples(),
            marks=side.marks,
            paired_with=side.pair,
            extra={
                "repetitions": len(side.runs),
                "valid": len(side.valid),
                "serving": msgspec.to_builtins(side.result.serving),
                "server_metrics": [side.runs[i].samples for i in side.valid],
                "tokens_counted": side.runs[side.valid[0]].counted,
                **({"attempt": attempt} if attempt > 1 else {}),
                **({"phase": "teardown"} if self.test_is_over else {}),
            },
        )

    def _record(
        self, model: OpenModel, workload: dict[str, Any], workload_text: str, **more: Any
    ) -> Record:
        opened, plan = model.opened, model.plan
        environment: Environment = collect_environment(
            opened.device_facts, opened.versions, self._settings.root
        )
        fields: dict[str, Any] = {
            "metrics": (),
            "samples": {},
            "warm_up": {},
            "marks": (),
            "effective": opened.effective,
            **more,
        }
        fields["extra"] = {
            **fields.get("extra", {}),
            "test_s": round(time.monotonic() - self._began_s, 3),
        }
        return Record(
            id=uuid.uuid4().hex,
            session_id=self._session_id,
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            test=self.test,
            label=self.label,
            workload=workload,
            workload_text=workload_text,
            workload_key=hashlib.sha256(msgspec.json.encode(workload, order="sorted")).hexdigest()[
                :16
            ],
            strategy=plan.strategy,
            engine=plan.engine,
            model=plan.model.name,
            model_hash=opened.content_hash,
            environment_key=environment_key(environment),
            environment=environment,
            **fields,
        )


@contextmanager
def _all_tried() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Gives a function that calls another and keeps its StoreError until the block ends, so that what can be kept is kept."""
    failed: list[StoreError] = []

    def attempt(action: Callable[[], object]) -> None:
        try:
            action()
        except StoreError as error:
            failed.append(error)

    yield attempt
    if failed:
        raise StoreError(" ".join(dict.fromkeys(map(str, failed)))) from failed[0]


def _ranks(side: Measured) -> dict[str, Any]:
    """Each rank's own memory, where there are several."""
    ranks = side.result.memory.ranks
    return (
        {"memory_ranks": [msgspec.to_builtins(gauges) for gauges in ranks]}
        if len(ranks) > 1
        else {}
    )


def _claim(finding: Finding) -> ClaimRecord:
    return ClaimRecord(
        text=finding.text,
        outcome=finding.outcome.value,
        margin=finding.margin,
        detail=finding.detail,
    )
