"""`--llmperf-record=N` and `llmperf record N`: sessions in a row, which a gate needs.

Each is a pytest process of its own, as a session of another day would be.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pytest_llmperf.errors import UsageError
from pytest_llmperf.settings.git import run_git, top_level
from pytest_llmperf.settings.settings import sessions

ONE = ("--llmperf-record=1", "--llmperf-gate=off", "--llmperf-against=off")
"""What a session in the row is told last: it records itself, and judges nothing."""

Say = Callable[[str], object]
"""Takes a line for the user."""


def record_sessions(n_sessions: int, arguments: Sequence[str], folder: Path, say: Say) -> int:
    """Run so many sessions of pytest one after the other, and return the exit code of the row.

    It ends at the first that does not pass: what a failed test measured is not held against.
    """
    for number in range(1, n_sessions + 1):
        began = time.monotonic()
        more = ["--llmperf-json-append"] if number > 1 else []
        exit_code = _run_session([*arguments, *more], folder)
        took_s = time.monotonic() - began
        if exit_code != pytest.ExitCode.OK:
            say(_ended_early(number, n_sessions, exit_code))
            return exit_code
        say(f"llmperf: session {number} of {n_sessions} is recorded ({took_s:.0f} s)")
    for line in _closing_lines(folder):
        say(line)
    return pytest.ExitCode.OK


def record_as_configured(config: pytest.Config, text: str) -> int:
    """Do what --llmperf-record says, with the command line of this process.

    Raises pytest.UsageError for a number that cannot be used.
    """
    try:
        n_sessions = sessions(text)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    invocation = config.invocation_params
    return record_sessions(n_sessions, list(map(str, invocation.args)), invocation.dir, _say)


def _say(line: str) -> None:
    """Print a line. Nothing of pytest's that prints is there before a session begins."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def session_command(arguments: Sequence[str]) -> list[str]:
    """Return the command line of one session. `-q` leaves one line of each summary."""
    # `python -m pytest` has the working directory on its path, `pytest` has not.
    path = [] if "-m" in sys.orig_argv and not sys.flags.safe_path else ["-P"]
    return [sys.executable, *path, "-m", "pytest", "-q", *arguments, *ONE]


def _run_session(arguments: Sequence[str], folder: Path) -> int:
    finished = subprocess.run(  # noqa: S603 - the user's own tests
        session_command(arguments), cwd=folder, check=False
    )
    return finished.returncode


def _ended_early(number: int, n_sessions: int, exit_code: int) -> str:
    n_recorded = number - 1
    head = f"llmperf: session {number} of {n_sessions} ended with exit code {exit_code}"
    if exit_code == pytest.ExitCode.NO_TESTS_COLLECTED:
        return f"{head}: no test was selected"
    return (
        f"{head}: {n_recorded} are recorded. Mend what failed, and record the other "
        f"{n_sessions - n_recorded}."
    )


def _closing_lines(folder: Path) -> list[str]:
    command = "pytest --llmperf-gate"
    if not _has_changes(folder):
        return [f"llmperf: next, '{command}' holds a session against these"]
    head = "llmperf: a gate holds nothing against sessions with uncommitted changes, as these have"
    return [f"{head}: commit and record again, or use '{command} --llmperf-any-tree'"]


def _has_changes(folder: Path) -> bool:
    try:
        if top_level(folder) is None:
            return False
        return bool(run_git(folder, "status", "--porcelain", "--untracked-files=no").stdout)
    except UsageError:  # there is no git
        return False
