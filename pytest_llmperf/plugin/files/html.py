"""--llmperf-html: collects what the reports of all processes carry, and writes the HTML report when the session ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.plugin.files.ci import SESSION_PROBLEMS

if TYPE_CHECKING:
    from pytest_llmperf.report.html.content import Content

_TOLD = frozenset({"SKIPPED", "INVALID", "ERROR", "FAIL"})


class HtmlFile:
    """Registered in the main process where the file was asked for.

    `store` is the URL of the history, or "none".
    """

    def __init__(self, path: Path, *, store: str, root: Path) -> None:
        self._path = path
        self._store = store
        self._root = root
        self._records: dict[str, Record] = {}
        self._tests: dict[str, dict[str, Any]] = {}
        self._said = self._failed = ""

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

        of_session = tuple(text for _, text in session.config.stash.get(SESSION_PROBLEMS, []))
        text = build(self._content(of_session)).encode("utf-8", "replace")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(text)
        except OSError as error:
            self._failed = f"the HTML report {self._path} cannot be written: {error}. 'llmperf report' makes it from the store."
            return
        n = len(self._records)
        self._said = f"HTML report of {n} record{'' if n == 1 else 's'} in {self._path} ({len(text) / 1e6:.1f} MB)"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where it is."""
        if self._said or self._failed:
            terminalreporter.write_line(
                f"llmperf: {self._said or self._failed}", red=bool(self._failed)
            )

    def _content(self, notes: tuple[str, ...]) -> Content:
        """What was measured here, with the history where the store can be read.

        `notes` are about the session as a whole.
        """
        # SQLAlchemy, where it is needed.
        from pytest_llmperf.history.store import open_store  # noqa: PLC0415

        if self._store == "none" or not self._records:
            return self._of(None, notes)
        try:
            with open_store(self._store, create=False, folder=self._root) as store:
                return self._of(store, notes)
        except LlmperfError as error:
            return self._of(None, (*notes, f"There is no history in this report: {error}"))

    def _of(self, store: Any, notes: tuple[str, ...]) -> Content:
        from pytest_llmperf.plugin.files.content import content  # noqa: PLC0415
        from pytest_llmperf.report.html.content import Unmeasured  # noqa: PLC0415

        measured = {record.test for record in self._records.values()}
        unmeasured = [
            Unmeasured(
                test=test,
                outcome=each["outcome"],
                kind=each["kind"],
                reason=each["reason"] or "it failed before anything was measured",
            )
            for test, each in self._tests.items()
            if each["outcome"] in _TOLD and (each["reason"] or test not in measured)
        ]
        n = len(self._tests)
        return content(
            sorted(self._records.values(), key=lambda record: (record.test, record.created)),
            scope=f"One session of {n} llmperf test{'' if n == 1 else 's'}",
            store=store,
            root=self._root,
            unmeasured=unmeasured,
            notes=notes,
        )
