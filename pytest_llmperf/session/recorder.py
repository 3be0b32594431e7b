"""Turns what was measured into records and puts them away at once: into the store, and as JSON lines when asked."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from pytest_llmperf.core.agreement import Agreement
from pytest_llmperf.core.judge import Finding
from pytest_llmperf.core.record import ClaimRecord, Environment, Record
from pytest_llmperf.session.environment import collect_environment, environment_key
from pytest_llmperf.session.settings import Settings
from pytest_llmperf.workloads import describe

if TYPE_CHECKING:
    from pytest_llmperf.history.store import Store
    from pytest_llmperf.report.json_lines import JsonLines
    from pytest_llmperf.session.run import Measured


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

    def begin(self, test: str, label: str) -> None:
        """A test starts: what was kept belongs to the one before."""
        self.test, self.label = test, label
        self.records = {}

    def add(self, measured: Sequence[Measured]) -> None:
        """Write one record for each side."""
        for side in measured:
            record = self._record(side)
            self.records[record.id] = record
            self._write(record)

    def agree(self, strategy: str, agreement: Agreement) -> None:
        """Attach an agreement to the test's records of that strategy."""
        for record in self.records.values():
            if record.strategy == strategy:
                self._replace(record, agreement=agreement.summary())

    def finish(self, outcome: str, findings: Sequence[Finding]) -> None:
        """The test is over: its outcome and claims go to every record it made."""
        claims = tuple(_claim(finding) for finding in findings)
        for record in list(self.records.values()):
            self._write(self._replace(record, outcome=outcome, claims=claims))

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()

    def _replace(self, record: Record, **changes: object) -> Record:
        self.records[record.id] = msgspec.structs.replace(record, **changes)
        return self.records[record.id]

    def _write(self, record: Record) -> None:
        if self._settings.json is not None:
            self._json_lines().append(record)
        if self._settings.store != "none":
            self._open_store().put(record)

    def _open_store(self) -> Store:
        if self._store is None:
            from pytest_llmperf.history.store import open_store  # noqa: PLC0415 - SQLAlchemy, only when something is stored

            self._store = open_store(self._settings.store)
        return self._store

    def _json_lines(self) -> JsonLines:
        if self._lines is None:
            from pytest_llmperf.report.json_lines import JsonLines  # noqa: PLC0415

            assert self._settings.json is not None  # noqa: S101
            self._lines = JsonLines(self._settings.json)
        return self._lines

    def _record(self, side: Measured) -> Record:
        opened, plan = side.model.opened, side.model.plan
        environment: Environment = collect_environment(opened.device_facts, opened.versions, self._settings.root)
        workload = msgspec.to_builtins(side.workload)
        return Record(
            id=uuid.uuid4().hex,
            session_id=self._session_id,
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            test=self.test,
            label=self.label,
            workload=workload,
            workload_text=describe(side.workload),
            workload_key=hashlib.sha256(msgspec.json.encode(workload, order="sorted")).hexdigest()[:16],
            strategy=plan.strategy,
            engine=plan.engine,
            model=plan.model.name,
            model_hash=opened.content_hash,
            environment_key=environment_key(environment),
            environment=environment,
            effective=opened.effective,
            metrics=side.result.metric_values(),
            samples=side.result.samples(),
            warm_up={"durations_s": side.warm_up.durations_s, "stable": side.warm_up.stable},
            marks=side.marks,
            paired_with=side.pair,
            extra={"repetitions": len(side.taken), "valid": len(side.valid)},
        )


def _claim(finding: Finding) -> ClaimRecord:
    return ClaimRecord(text=finding.text, outcome=finding.outcome.value, margin=finding.margin, detail=finding.detail)
