"""--llmperf-benchmark-json: the runs of all processes, in pytest-benchmark's format.

They are collected from reports and written when the session ends.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_llmperf.core.record import Record
from pytest_llmperf.plain_text import shown
from pytest_llmperf.report.benchmark_json import document

TIMES = ("time", "latency")
"""The samples that reports must carry for this file."""


def _carried_records(report: pytest.TestReport) -> list[Record]:
    return msgspec.convert(getattr(report, "llmperf", {}).get("records", ()), list[Record])


class BenchmarkFile:
    """Registered in the main process where the file was asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[str, Record] = {}
        self._message = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the runs of a test; the report of its end has the newest state of each."""
        self._records |= {record.id: record for record in _carried_records(report)}

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the file. That it cannot be written makes the session red."""
        if session.config.option.collectonly:
            return
        runs = document(list(self._records.values()), datetime.now(UTC).isoformat())
        try:
            self._write(runs)
        except OSError as error:
            self._message = f"{self._path} cannot be written: {error}"
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
            return
        n_runs = len(runs["benchmarks"])
        count = "1 run" if n_runs == 1 else f"{n_runs} runs"
        self._message = f"{count} written to {self._path} in pytest-benchmark's format"

    def _write(self, runs: dict[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(runs, indent=4), encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print where it is."""
        if self._message:
            terminalreporter.write_line(shown(f"llmperf: {self._message}"))
