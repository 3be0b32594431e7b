"""A session that was asked to compare and compared nothing is not green.

pytest's hooks see to it.
"""

from __future__ import annotations

import pytest

from pytest_llmperf.plain_text import shown
from pytest_llmperf.plugin.files.ci import say_of_session
from pytest_llmperf.plugin.gate_watch import EXIT_JUDGED_NOTHING


class AgainstWatch:
    """Registered only under --llmperf-against.

    Counts what the reports of all tests (also of pytest-xdist) say was compared.
    """

    def __init__(self, config: pytest.Config, base: str) -> None:
        self._worker = hasattr(config, "workerinput")
        self._problem = (
            f"--llmperf-against compared nothing with {base}: no run here had a counterpart there."
        )
        self._compared = 0
        self._compared_nothing = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add what a test's report carries."""
        self._compared += getattr(report, "llmperf", {}).get("compared", 0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Give a session that only looks green another exit code."""
        option = session.config.option
        ran = not (self._worker or option.collectonly or option.llmperf_plan)
        self._compared_nothing = ran and self._compared == 0
        if not self._compared_nothing:
            return
        say_of_session(session.config, "FAIL", [self._problem])
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = EXIT_JUDGED_NOTHING

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say so."""
        if self._compared_nothing:
            terminalreporter.write_line(shown(f"llmperf: {self._problem}"), red=True)
