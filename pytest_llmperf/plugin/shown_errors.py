"""How pytest prints an error of ours: the message, and the test's own line where it has one.

Nothing of our inside.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_llmperf.errors import LlmperfError, LoadError


def show(
    report: pytest.TestReport, excinfo: pytest.ExceptionInfo[BaseException], path: str
) -> None:
    """Leave only the message where the traceback has no line of the test's file.

    That is so for an error of its declaration. Of a chain only our error is left. The error is
    named without its module: pytest cuts the line of its short summary at the terminal's width.
    """
    error = excinfo.value
    if not isinstance(error, LlmperfError) or getattr(report.longrepr, "reprcrash", None) is None:
        return
    longrepr: Any = report.longrepr
    if len(getattr(longrepr, "chain", ())) > 1:
        report.longrepr = type(longrepr)(longrepr.chain[-1:])
    if all(str(entry.path) != path for entry in excinfo.traceback):
        report.longrepr = _message_alone(excinfo)
    message = f"{type(error).__name__}: {error}"
    report.longrepr.reprcrash.message = message  # type: ignore[union-attr]


def shorten_notes(error: BaseException) -> None:
    """Leave only the first line of what a worker said of a model that it could not load.

    The message says what is wrong already.
    """
    if not isinstance(error, LoadError) or not hasattr(error, "__notes__"):
        return
    error.__notes__ = [
        f"{note.partition(chr(10))[0].rstrip(':')}; -vv shows its traceback"
        if "\n" in note
        else note
        for note in error.__notes__
    ]


def _message_alone(excinfo: pytest.ExceptionInfo[BaseException]) -> Any:
    """Return a report of the error without any line of code."""
    longrepr: Any = excinfo.getrepr(style="value", chain=False)
    # A note is what the worker said.
    with_notes = excinfo.exconly().removeprefix(f"{excinfo.type.__module__}.")
    lines = [f"E   {line}" for line in with_notes.splitlines()]
    last_entry = longrepr.reprtraceback.reprentries[-1]
    longrepr.reprtraceback.reprentries = [replace(last_entry, lines=lines)]
    return longrepr
