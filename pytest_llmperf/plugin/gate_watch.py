"""A session that was asked to gate and did not is not green.

The main process sees to it once all tests are done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.gate.collection import Collected, Collecting, received
from pytest_llmperf.gate.waivers import Waiver, Waivers
from pytest_llmperf.plain_text import shown
from pytest_llmperf.plugin.files.ci import say_of_session

EXIT_JUDGED_NOTHING = 6
"""Exit code of a session that gates, would have passed, and compared no run with its history.

pytest's own end at 5.
"""

JUDGED_NOTHING = (
    "--llmperf-gate judged nothing: no run could be compared with an accepted session. "
    "Record some without the gate first."
)
MEASURED_NOTHING = (
    "--llmperf-gate judged nothing: no run could be measured. What stood in the way is said above."
)
_SENT = "llmperf_collected"


class GateWatch:
    """Registered only under --llmperf-gate, in every process.

    It counts what the reports of all tests say was judged, and looks for tests that are missed and
    waivers that are of no use. Under pytest-xdist the workers collect and the controller looks.
    """

    def __init__(
        self,
        config: pytest.Config,
        waivers: Waivers,
        *,
        store: str,
        require_accepted: bool,
        any_tree: bool,
        is_mine: Callable[[pytest.Item], bool],
    ) -> None:
        self._config = config
        self._waivers = waivers
        self._store = store
        self._require_accepted = require_accepted
        self._any_tree = any_tree
        self._is_mine = is_mine
        self._collecting = Collecting(config)
        self._sent: list[dict[str, Any]] = []
        self._records: list[Record] = []
        self._n_judged = 0
        self._n_unmeasured = 0
        self._failures: list[str] = []
        self._lines: list[str] = []
        self._judged_nothing = ""

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Note a test before anything is deselected."""
        if self._is_mine(item):
            self._collecting.item(item)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note that a file was collected, or could not be."""
        self._collecting.report(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add what a test's report carries."""
        carried = getattr(report, "llmperf", {})
        self._n_judged += carried.get("judged", 0)
        self._n_unmeasured += carried.get("outcome") in {"INVALID", "ERROR"}
        self._records += [msgspec.convert(row, Record) for row in carried.get("records", ())]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what an xdist worker collected."""
        sent = getattr(node, "workeroutput", {}).get(_SENT)
        if sent is not None:
            self._sent.append(sent)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Give a session that only looks green another exit code."""
        if hasattr(self._config, "workerinput"):
            sent = self._collecting.done().sendable()
            self._config.workeroutput[_SENT] = sent  # type: ignore[attr-defined]
            return
        if session.config.option.collectonly or session.config.option.llmperf_plan:
            return
        self._look(self._collected())
        if self._n_judged == 0:
            measured_nothing = self._n_unmeasured and not self._records
            self._judged_nothing = MEASURED_NOTHING if measured_nothing else JUDGED_NOTHING
        say_of_session(self._config, "NOT COMPARABLE", self._lines)
        say_of_session(self._config, "FAIL", self._all_failures())
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = self._exit_code()

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print what is wrong with the session."""
        for line in self._lines:
            terminalreporter.write_line(shown(f"llmperf: {line}"), yellow=True)
        for line in self._all_failures():
            terminalreporter.write_line(shown(f"llmperf: {line}"), red=True)

    def _all_failures(self) -> list[str]:
        """Return what is wrong with waivers and tests, and that nothing was judged."""
        return [*self._failures, *filter(None, [self._judged_nothing])]

    def _collected(self) -> Collected:
        root = self._config.rootpath.resolve()
        return received(root, self._sent) if self._sent else self._collecting.done()

    def _exit_code(self) -> int:
        """Return the exit code of a session that would have passed."""
        if self._failures:
            return pytest.ExitCode.TESTS_FAILED
        return EXIT_JUDGED_NOTHING if self._judged_nothing else pytest.ExitCode.OK

    def _look(self, collected: Collected) -> None:
        """Look for waivers that are of no use, and for tests that are missing."""
        self._failures += map(self._expired_text, self._waivers.expired)
        unknown = self._waivers.unknown(collected.tests, collected.knows)
        self._failures += map(self._unknown_text, unknown)
        missing = self._missing_tests(collected)
        if self._require_accepted:
            self._failures += missing
        else:
            self._lines += missing

    def _expired_text(self, waiver: Waiver) -> str:
        return (
            f"the waiver of {waiver.owner} for {waiver.metric} of {waiver.test} expired on "
            f"{waiver.expires}: it waives nothing. "
            f"Mend the test, or renew it in {self._waivers.path.name}."
        )

    def _unknown_text(self, waiver: Waiver) -> str:
        return (
            f"the waiver of {waiver.owner} for {waiver.metric} is for {waiver.test}, "
            f"which is no test: correct it or remove it from {self._waivers.path.name}."
        )

    def _missing_tests(self, collected: Collected) -> list[str]:
        # SQLAlchemy, at the end.
        from pytest_llmperf.gate.missing import look_for_gone  # noqa: PLC0415

        root = self._config.rootpath
        try:
            gone = look_for_gone(
                self._store, root, collected, self._records, any_tree=self._any_tree
            )
            return list(map(str, gone))
        except LlmperfError as error:
            return [f"whether tests are missing was not looked at: {error}"]
