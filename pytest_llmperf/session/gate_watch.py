"""A session that was asked to gate and judged nothing is not green: pytest's hooks that see to it, in the main process."""

from __future__ import annotations

import pytest

EXIT_JUDGED_NOTHING = 6
"""Exit code of a session that gates, would have passed, and compared no run with its history. pytest's own end at 5."""


class GateWatch:
    """Registered only under --llmperf-gate. Counts what the reports of all tests (also of pytest-xdist) say was judged."""

    def __init__(self, config: pytest.Config) -> None:
        self._worker = hasattr(config, "workerinput")
        self._judged = 0
        self._nothing = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add what a test's report carries."""
        self._judged += getattr(report, "llmperf", {}).get("judged", 0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Give a session that only looks green another exit code."""
        ran = not (self._worker or session.config.option.collectonly or session.config.option.llmperf_plan)
        self._nothing = ran and self._judged == 0
        if self._nothing and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = EXIT_JUDGED_NOTHING

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say so."""
        if self._nothing:
            terminalreporter.write_line(
                "llmperf: --llmperf-gate judged nothing: no run could be compared with an accepted session. "
                "Record some without the gate first.",
                red=True,
            )
