"""--llmperf-html: the HTML report of a session.

What the reports of all processes carry is collected, and written when the session ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pytest_llmperf.core.change import Change
from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.plain_text import shown
from pytest_llmperf.plugin.files.ci import SESSION_PROBLEMS

if TYPE_CHECKING:
    from pytest_llmperf.report.html.content import Content, Unmeasured

_WITHOUT_NUMBERS = frozenset({"SKIPPED", "INVALID", "ERROR", "FAIL"})


class HtmlFile:
    """Registered in the main process where the file was asked for.

    `store` is the URL of the history, or "none"; `judged` says what judges the session.
    """

    def __init__(self, path: Path, *, store: str, root: Path, judged: str = "") -> None:
        self._path = path
        self._store = store
        self._root = root
        self._judged = judged
        self._records: dict[str, Record] = {}
        self._tests: dict[str, dict[str, Any]] = {}
        self._message = self._failure = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test left; the report of its end has the newest state of each record."""
        carried = getattr(report, "llmperf", None)
        if carried is None:
            return
        self._tests[report.nodeid] = carried
        for row in carried["records"]:
            record = msgspec.convert(row, Record)
            self._records[record.id] = record

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the file.

        That it cannot be written is said after the tests; their outcome and the exit code stay.
        """
        if session.config.option.collectonly or session.config.option.llmperf_plan:
            return
        # Jinja, where a report is made.
        from pytest_llmperf.report.html import build  # noqa: PLC0415

        problems = tuple(text for _, text in session.config.stash.get(SESSION_PROBLEMS, []))
        self._write(build(self._content(problems)).encode("utf-8", "replace"))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print where it is."""
        message = self._message or self._failure
        if message:
            terminalreporter.write_line(shown(f"llmperf: {message}"), red=bool(self._failure))

    def _write(self, page: bytes) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(page)
        except OSError as error:
            self._failure = (
                f"the HTML report {self._path} cannot be written: {error}. "
                "'llmperf report' makes it from the store."
            )
            return
        n_records = len(self._records)
        count = "1 record" if n_records == 1 else f"{n_records} records"
        megabytes = len(page) / 1e6
        self._message = f"HTML report of {count} in {self._path} ({megabytes:.1f} MB)"

    def _content(self, notes: tuple[str, ...]) -> Content:
        """Return what was measured here, with the history where the store can be read.

        `notes` are about the session as a whole.
        """
        # SQLAlchemy, where it is needed.
        from pytest_llmperf.history.store import open_store  # noqa: PLC0415

        if self._store == "none" or not self._records:
            return self._content_with(None, notes)
        try:
            with open_store(self._store, create=False, folder=self._root) as store:
                return self._content_with(store, notes)
        except LlmperfError as error:
            return self._content_with(
                None, (*notes, f"There is no history in this report: {error}")
            )

    def _content_with(self, store: Any, notes: tuple[str, ...]) -> Content:
        from pytest_llmperf.plugin.files.content import content  # noqa: PLC0415

        return content(
            self._ordered_records(),
            scope=self._scope(),
            store=store,
            root=self._root,
            unmeasured=self._unmeasured(),
            notes=notes,
            changes=[
                msgspec.convert(change, Change)
                for carried in self._tests.values()
                for change in carried.get("changes", ())
            ],
            judged=self._judged,
        )

    def _ordered_records(self) -> list[Record]:
        return sorted(self._records.values(), key=lambda record: (record.test, record.created))

    def _scope(self) -> str:
        n_tests = len(self._tests)
        tests = "1 llmperf test" if n_tests == 1 else f"{n_tests} llmperf tests"
        return f"One session of {tests}"

    def _unmeasured(self) -> list[Unmeasured]:
        """Return the tests that left no number, each with its reason."""
        from pytest_llmperf.report.html.content import Unmeasured  # noqa: PLC0415

        measured = {record.test for record in self._records.values()}
        return [
            Unmeasured(
                test=test,
                outcome=carried["outcome"],
                kind=carried["kind"],
                reason=carried["reason"] or "it failed before anything was measured",
            )
            for test, carried in self._tests.items()
            if carried["outcome"] in _WITHOUT_NUMBERS
            and (carried["reason"] or test not in measured)
        ]
