"""--llmperf-benchmark-json: collects the runs of all processes and writes them when the session ends."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from pytest_llmperf.core.record import Record
from pytest_llmperf.report.benchmark_json import document

TIMES = ("time", "latency")
"""The samples that reports must carry for this file."""


class BenchmarkFile:
    """Registered in the main process where the file was asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[str, Record] = {}
        self._said = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the runs of a test; the report of its end has the newest state of each."""
        for row in getattr(report, "llmperf", {}).get("records", ()):
            record = msgspec.convert(row, Record)
            self._records[record.id] = record

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the file. That it cannot be written makes the session red."""
        if session.config.option.collectonly:
            return
        found = document(list(self._records.values()), datetime.now(UTC).isoformat())
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(found, indent=4), encoding="utf-8")
        except OSError as error:
            self._said = f"{self._path} cannot be written: {error}"
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
            return
        n = len(found["benchmarks"])
        self._said = (
            f"{n} run{'' if n == 1 else 's'} written to {self._path} in pytest-benchmark's format"
        )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where it is."""
        if self._said:
            terminalreporter.write_line(f"llmperf: {self._said}")
