"""What CI systems read.

That is GitHub's annotations and job page, GitLab's code quality, a Markdown comment, OpenMetrics.

Registered in the main process where one of them is asked for: by an option, or by GitHub's own
variables. Sessions inside of that session (the bodies and base sides that it starts, a project's
tests of pytest plugins) write none of it. In a CI job every pytest session imports this file: what
makes the texts is imported once there is something to say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmperf.plain_text import shown
from pytest_llmperf.plugin.stash import stated_reason

if TYPE_CHECKING:
    from pytest_llmperf.plugin.files.ci_pages import Pages

INSIDE = "LLMPERF_CI_SESSION"
"""Set for whatever a session starts, so that it writes nothing into the same places."""

FILES = ("markdown", "gitlab", "openmetrics")
SESSION_PROBLEMS = pytest.StashKey[list[tuple[str, str]]]()
"""Outcome and text of what is wrong with the session and not with a test, in the main process."""

_WORKSPACES = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")
_TEXT_LINES = 12


class CiOutput:
    """Collects the reports of all processes and writes at the end.

    A file that cannot be written changes no outcome.
    """

    def __init__(
        self, config: pytest.Config, files: Mapping[str, Path], make: Callable[..., Pages]
    ) -> None:
        self._config = config
        self._files = files
        self._make = make
        self._page = os.environ.get("GITHUB_STEP_SUMMARY", "")
        self._rows: dict[str, dict[str, Any]] = {}
        self._endings: dict[str, dict[str, Any]] = {}
        self._lines: list[str] = []
        self._notes: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the runs of a test, and where and why it ended as it did."""
        carried = getattr(report, "llmperf", None)
        if carried is None:
            return
        self._rows |= {row["id"]: row for row in carried["records"]}
        path, line = self._place(report)
        ending = {
            "test": report.nodeid,
            "outcome": carried["outcome"],
            "path": path,
            "line": line,
            "text": _text(report, carried),
        }
        self._endings.setdefault(report.nodeid, ending)

    @pytest.hookimpl(trylast=True)  # after those that say what is wrong with the session
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write what was asked for; annotations are printed with the summary."""
        option = session.config.option
        endings = self._all_endings()
        if option.collectonly or option.llmperf_plan or not (endings or self._files):
            return
        pages = self._make(self._rows.values(), endings)
        if endings:
            self._append_job_page(pages)
        for name, path in self._files.items():
            self._write(path, getattr(pages, name)(), mode="w")
        if _on_github():
            self._lines = pages.annotations()
        self._notes += pages.notes

    def _append_job_page(self, pages: Pages) -> None:
        if self._page:
            self._write(Path(self._page), pages.job_page(), mode="a")

    def _all_endings(self) -> list[dict[str, Any]]:
        """Return what is wrong with the session, and how each test ended."""
        problems = self._config.stash.get(SESSION_PROBLEMS, [])
        return [*starmap(_session_ending, problems), *self._endings.values()]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print annotations, which are lines of the job's log, and files that were not written."""
        for line in self._lines:
            terminalreporter.write_line(line)
        for line in self._notes:
            terminalreporter.write_line(shown(f"llmperf: {line}"), yellow=True)

    def pytest_unconfigure(self) -> None:
        """Let later sessions of this process write again."""
        os.environ.pop(INSIDE, None)

    def _write(self, path: Path, text: str, *, mode: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open(mode, encoding="utf-8", errors="replace") as file:
                file.write(text)
        except OSError as error:
            self._notes.append(f"{path} cannot be written: {error}. Give a writable place.")

    def _place(self, report: pytest.TestReport) -> tuple[str, int]:
        """Return the test's file from the repository's root, and a line of it.

        It is the line that failed there, else the test's own.
        """
        name, line, _ = report.location
        file = Path(os.path.normpath(self._config.rootpath / name))
        path = _from_repository(file, self._config.rootpath)
        crash = getattr(report.longrepr, "reprcrash", None)
        if crash is not None and Path(crash.path) == file:
            return path, crash.lineno
        return path, (line or 0) + 1


def say_of_session(config: pytest.Config, outcome: str, texts: Iterable[str]) -> None:
    """Have CI systems show what is wrong with the session as a whole."""
    config.stash.setdefault(SESSION_PROBLEMS, []).extend((outcome, text) for text in texts)


def open_ci(
    config: pytest.Config, files: Mapping[str, Path], make: Callable[..., Pages]
) -> CiOutput | None:
    """Return the plugin where something is to be written; None inside of another session.

    `make` is called at the end, if at all.
    """
    if not _is_wanted(files):
        return None
    os.environ[INSIDE] = str(os.getpid())
    return CiOutput(config, files, make)


def _is_wanted(files: Mapping[str, Path]) -> bool:
    """Whether this is no session inside of another, and something is to be written."""
    return INSIDE not in os.environ and (bool(files) or _is_github_job())


def _is_github_job() -> bool:
    """Whether annotations or a page of the job would be read."""
    return _on_github() or bool(os.environ.get("GITHUB_STEP_SUMMARY"))


def _session_ending(outcome: str, text: str) -> dict[str, Any]:
    return {"test": "the session", "outcome": outcome, "text": text}


def _on_github() -> bool:
    return os.environ.get("GITHUB_ACTIONS") == "true"


def _from_repository(file: Path, root: Path) -> str:
    for top in (*_workspaces(), root):
        if file.is_relative_to(top):
            return file.relative_to(top).as_posix()
    return file.as_posix()


def _workspaces() -> list[Path]:
    return [Path(os.environ[name]) for name in _WORKSPACES if os.environ.get(name)]


def _text(report: pytest.TestReport, carried: Mapping[str, Any]) -> str:
    """Return why a test ended as it did, cut to a few lines.

    It is the reason of an error, the message of a failed assertion, or the claims that were not
    decided.
    """
    text = stated_reason(carried) or _crash_message(report) or _claims_text(carried)
    lines = (text or str(report.longrepr or carried["outcome"])).strip().splitlines()
    if len(lines) <= _TEXT_LINES:
        return "\n".join(lines)
    return "\n".join([*lines[:_TEXT_LINES], "…"])


def _crash_message(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message if crash is not None else ""


def _claims_text(carried: Mapping[str, Any]) -> str:
    """Return the claims that ended as the test did, each once."""
    texts = [f"{claim['text']}\n{claim['detail']}" for claim in _deciding_claims(carried)]
    return "\n".join(dict.fromkeys(texts))


def _deciding_claims(carried: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for row in carried["records"]:
        for claim in row["claims"]:
            if claim["outcome"] == carried["outcome"]:
                yield claim
