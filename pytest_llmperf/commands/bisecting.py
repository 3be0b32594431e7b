"""The first commit that made a metric worse, by git's own bisection.

It walks in a work tree of its own, and each commit is measured against GOOD (rule B).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from pytest_llmperf.against.base import build
from pytest_llmperf.against.trees import OTHERS, Trees, base_environment, drop_steering
from pytest_llmperf.against.worktree import Worktree
from pytest_llmperf.core.change import Change, stored_change
from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import UsageError
from pytest_llmperf.report.json_lines import BadLine, read
from pytest_llmperf.settings.git import commit_of, git, run_git, top_level

Word = Literal["good", "bad", "skip"]
_HEX = re.compile(r"^[0-9a-f]{40}$", re.MULTILINE)
_FIRST_BAD = re.compile(r"^([0-9a-f]{40}) is the first bad commit$", re.MULTILINE)
_TAIL_LINES = 5


class Step(Struct, frozen=True, kw_only=True):
    """One commit against GOOD: what git learns of it, and the evidence or why there is none.

    The evidence is that of its worst test: `ratio` with its 99 % interval is commit / GOOD,
    `evidence` E of the verdict, `worse` the share it is worse by.
    """

    commit: str
    subject: str
    word: Word
    outcome: str
    test: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    pairs: int = 0
    evidence: float | None = None
    worse: float | None = None
    reason: str = ""


class Bisection(Struct, frozen=True, kw_only=True):
    """How a search ended.

    `first_bad` is None where `suspects` could not be told apart, or nothing is worse (`suspects`
    empty).
    """

    steps: tuple[Step, ...]
    first_bad: Step | None = None
    suspects: tuple[str, ...] = ()


class Search(Struct, frozen=True, kw_only=True):
    """What to look for: a metric of what these pytest arguments run, worse by more than `limit`."""

    metric: str
    limit: float
    good: str
    bad: str
    pytest_args: tuple[str, ...]
    first_parent: bool = False
    build: str = ""


def bisect(search: Search, folder: Path, show: Callable[[Step], None]) -> Bisection:
    """Walk the commits between GOOD and BAD of the repository that `folder` is in.

    The user's checkout is not touched; `show` is called with each step.

    Raises:
        UsageError: no repository, no such commits, GOOD is no ancestor of BAD, or GOOD or BAD
            cannot be built or measured.
    """
    top, good, bad = _commits(search, folder)
    with _worktree(top, good) as base, _worktree(top, bad) as tree:
        if search.build:
            build(search.build, base)
        walker = _Walker(search, top, folder, base, tree)
        first = walker.measure()
        show(first)
        if first.word == "bad":
            return _walk(walker, first, good, show)
    _require_measured(search, first)
    return Bisection(steps=(first,))


def _require_measured(search: Search, first: Step) -> None:
    if first.outcome not in ("PASS", "UNDECIDED"):
        raise UsageError(
            f"BAD ({search.bad}) cannot be measured against GOOD ({search.good}): {first.reason}"
        )


@contextmanager
def _worktree(top: Path, commit: str) -> Iterator[Path]:
    """The files of a commit in a folder of their own."""
    worktree = Worktree(top, commit)
    try:
        yield worktree.path
    finally:
        worktree.close()


def _walk(walker: _Walker, first: Step, good: str, show: Callable[[Step], None]) -> Bisection:
    """Let git choose commits until it names the first bad one, or those that could be it."""
    steps = {first.commit: first}
    walker.narrow(first)
    output = walker.start(first.commit, good)
    while (end := _end(output)) is None:
        step = walker.measure()
        steps[step.commit] = step
        show(step)
        output = walker.tell_git(step)
    commit, suspects = end
    return Bisection(
        steps=tuple(steps.values()),
        first_bad=steps[commit] if commit else None,
        suspects=suspects,
    )


def _end(output: str) -> tuple[str | None, tuple[str, ...]] | None:
    """How git's bisection ended: the first bad commit, or those that could be it.

    None while it goes on.
    """
    match = _FIRST_BAD.search(output)
    if match:
        return match[1], (match[1],)
    if "only 'skip'ped commits left" in output:
        return None, tuple(_HEX.findall(output))
    return None


class _Measured(NamedTuple):
    """The metric of one test at a commit: its change since GOOD, and the stored summary."""

    change: Change
    summary: dict[str, Any]

    @property
    def rank(self) -> tuple[int, float]:
        """The worst of several tests speaks for a commit: a failed one, else an undecided one."""
        order = ("PASS", "NOT COMPARABLE", "UNDECIDED", "FAIL")
        return order.index(self.change.outcome), float(self.summary.get("worse") or 0.0)


class _Walker:
    """Measures whatever commit its work tree has checked out against GOOD's."""

    def __init__(self, search: Search, top: Path, folder: Path, base: Path, tree: Path) -> None:
        self.search = search
        self.tree = tree
        self._top = top
        self._base = base
        self._inside = folder.resolve().relative_to(top)
        self._limit = search.limit
        self._tests: frozenset[str] = frozenset()

    def start(self, bad: str, good: str) -> str:
        """Start git's bisection, which checks out the next commit, and return what git says."""
        flags = ["--first-parent"] if self.search.first_parent else []
        return git(self.tree, "bisect", "start", *flags, bad, good)

    def tell_git(self, step: Step) -> str:
        """Tell git whether the commit is good, and return what it says.

        Its exit code is not 0 where only skipped commits are left, too.
        """
        finished = run_git(self.tree, "bisect", step.word)
        if finished.returncode != 0 and _end(finished.stdout) is None:
            raise UsageError(f"git bisect {step.word}: {_complaint(finished)}")
        return finished.stdout

    def narrow(self, bad: Step) -> None:
        """Look for half of BAD's change in BAD's worst test: a commit has the change, or not."""
        self._limit = max(self._limit, (bad.worse or 0.0) / 2)
        self._tests = frozenset([bad.test])

    def measure(self) -> Step:
        """One step.

        A commit that cannot be built or run is to be skipped, and so is one that stays undecided.
        """
        commit, subject = git(self.tree, "log", "-1", "--format=%H%n%s").partition("\n")[::2]
        git(self.tree, "clean", "-ffdxq")
        measured, reason = self._measure()
        if measured:
            return _step(commit, subject, max(measured, key=lambda metric: metric.rank))
        return Step(commit=commit, subject=subject, word="skip", outcome="NOT RUN", reason=reason)

    def _measure(self) -> tuple[list[_Measured], str]:
        """The metric of each test that has it, and why there may be none."""
        reason = self._build()
        if reason:
            return [], reason
        records, reason = self._run()
        return [metric for record in records for metric in self._metric_of(record)], reason

    def _build(self) -> str:
        """Why the commit cannot be built, "" where it can."""
        if not self.search.build:
            return ""
        try:
            build(self.search.build, self.tree)
        except UsageError as error:
            return str(error)
        return ""

    def _metric_of(self, record: Record) -> Iterator[_Measured]:
        """What was measured of the metric in one of the tests, if it was."""
        name = self.search.metric
        metrics = record.extra.get("against", {}).get("metrics", {})
        if name in metrics and (not self._tests or record.test in self._tests):
            yield _Measured(stored_change(record, name, metrics[name]), metrics[name])

    def _run(self) -> tuple[list[Record], str]:
        """The records of one pytest session, and how it ended."""
        with tempfile.TemporaryDirectory(prefix="llmperf-bisect-") as folder:
            file = Path(folder) / "records.jsonl"
            finished = self._run_pytest(file)
            records = _newest(file)
        return records, _ending(finished)

    def _run_pytest(self, file: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - our own interpreter, the user's own arguments
            self._command(file),
            cwd=self.tree / self._inside,
            env=self._environment(),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def _command(self, file: Path) -> list[str]:
        base = self._base / _root_inside(self._top / self._inside, self._top)
        return [
            sys.executable,
            "-P",
            "-m",
            "pytest",
            *self.search.pytest_args,
            f"--llmperf-against={base}",
            f"--llmperf-against-limits={self.search.metric}:{self._limit!r}",
            "--llmperf-store=none",
            "--llmperf-gate=off",
            f"--llmperf-json={file}",
        ]

    def _environment(self) -> dict[str, str]:
        environ = dict(os.environ)
        drop_steering(environ)
        trees = Trees(head=self._top, base=self.tree)
        return environ | base_environment(trees, environ, self.tree) | {OTHERS: str(self._top)}


def _ending(finished: subprocess.CompletedProcess[str]) -> str:
    """How a pytest session ended, and its last lines."""
    return f"pytest ended with exit code {finished.returncode}: {_tail(finished.stdout)}"


def _tail(output: str) -> str:
    lines = map(str.strip, output.splitlines()[-_TAIL_LINES:])
    return " / ".join(filter(None, lines))


def _complaint(finished: subprocess.CompletedProcess[str]) -> str:
    return finished.stderr.strip() or finished.stdout.strip()


def _newest(file: Path) -> list[Record]:
    """The newest line of each record of a file that may not be there."""
    if not file.is_file():
        return []
    newest = {record.id: record for record in _readable(file)}
    return list(newest.values())


def _readable(file: Path) -> list[Record]:
    return [line for line in read(file) if not isinstance(line, BadLine)]


def _root_inside(folder: Path, top: Path) -> Path:
    """Where in the repository the root of the tested project is, as pytest finds it."""
    from pytest_llmperf.settings.project import find_project  # noqa: PLC0415

    root = find_project(folder).root
    return root.relative_to(top) if root.is_relative_to(top) else Path()


def _step(commit: str, subject: str, measured: _Measured) -> Step:
    change, summary = measured
    decision = summary.get("decision") or {}
    words: dict[str, Word] = {"FAIL": "bad", "PASS": "good"}
    return Step(
        commit=commit,
        subject=subject,
        word=words.get(change.outcome, "skip"),
        outcome=change.outcome,
        test=change.test,
        ratio=change.ratio,
        low=change.low,
        high=change.high,
        pairs=change.n_after,
        evidence=decision.get("e_not_worse" if change.outcome == "PASS" else "e_worse"),
        worse=decision.get("worse", summary.get("worse")),
        reason=change.reason,
    )


def _commits(search: Search, folder: Path) -> tuple[Path, str, str]:
    """The root of the repository, and the commits of GOOD and BAD."""
    top = top_level(folder)
    if top is None:
        raise UsageError(f"{folder} is in no git work tree: there are no commits to walk.")
    good, bad = (_commit(top, name) for name in (search.good, search.bad))
    if good == bad or run_git(top, "merge-base", "--is-ancestor", good, bad).returncode != 0:
        raise UsageError(
            f"GOOD ({search.good}) is not an earlier commit than BAD ({search.bad}), "
            "or not on its way: none is between."
        )
    return top.resolve(), good, bad


def _commit(top: Path, name: str) -> str:
    commit = commit_of(top, name)
    if commit is None:
        raise UsageError(
            f"{name!r} is not a commit of {top}. Name two that git knows: a tag, a branch, a hash."
        )
    return commit
