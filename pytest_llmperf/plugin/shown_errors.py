"""How pytest prints an error of ours: the message, and the test's own line where it has one.

Nothing of our inside.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_llmperf.errors import LlmperfError


def show(
    report: pytest.TestReport, excinfo: pytest.ExceptionInfo[BaseException], path: str
) -> None:
    """Without a line of the test's file (an error of its declaration) only the message is left, and of a chain our error alone.

    The error is named without its module: pytest cuts the line of its short summary at the terminal's width.
    """
    error = excinfo.value
    if not isinstance(error, LlmperfError) or getattr(report.longrepr, "reprcrash", None) is None:
        return
    whole: Any = report.longrepr
    if len(getattr(whole, "chain", ())) > 1:
        report.longrepr = type(whole)(whole.chain[-1:])
    message = f"{type(error).__name__}: {error}"
    if all(str(entry.path) != path for entry in excinfo.traceback):
        shown = excinfo.getrepr(style="value", chain=False)
        # A note is what the worker said.
        with_notes = excinfo.exconly().removeprefix(f"{type(error).__module__}.")
        lines = [f"E   {line}" for line in with_notes.splitlines()]
        shown.reprtraceback.reprentries = [
            replace(shown.reprtraceback.reprentries[-1], lines=lines)
        ]
        report.longrepr = shown
    report.longrepr.reprcrash.message = message  # type: ignore[union-attr]
