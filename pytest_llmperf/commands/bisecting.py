"""The first commit that made a metric worse: git's own bisection in a work tree, each commit measured against GOOD (rule B)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from pytest_llmperf.against.base import build
from pytest_llmperf.against.trees import OTHERS, Trees, base_environment, drop_steering
from pytest_llmperf.against.worktree import Worktree
from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import UsageError
from pytest_llmperf.report.json_lines import BadLine, read
from pytest_llmperf.settings.git import commit_of, git, run_git, top_level

Word = Literal["good", "bad", "skip"]
_HEX = re.compile(r"^[0-9a-f]{40}$", re.MULTILINE)
_FIRST_BAD = re.compile(r"^([0-9a-f]{40}) is the first bad commit$", re.MULTILINE)
_TAIL_LINES = 5


class Step(Struct, frozen=True, kw_only=True):
    """One commit against GOOD: what git was told of it, and the evidence (of its worst test) or why there is none.

    `ratio` with its 99 % interval is commit / GOOD, `evidence` E of the verdict, `worse` the share it is worse by.
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


class Found(Struct, frozen=True, kw_only=True):
    """What came of it.

    `first_bad` is None where `suspects` could not be told apart, or nothing is worse (`suspects`
    empty).
    """

    steps: tuple[Step, ...]
    first_bad: Step | None = None
    suspects: tuple[str, ...] = ()


class Asked(Struct, frozen=True, kw_only=True):
    """What to look for: a metric that is worse by more than `limit`, in what these pytest arguments run."""

    metric: str
    limit: float
    good: str
    bad: str
    pytest_args: tuple[str, ...]
    first_parent: bool = False
    build: str = ""


def bisect(asked: Asked, here: Path, show: Callable[[Step], None]) -> Found:
    """Walk the commits between GOOD and BAD.

    The user's checkout is not touched; `show` is told each step.

    Raises:
        UsageError: no repository, no such commits, GOOD is no ancestor of BAD, or GOOD or BAD
            cannot be built or measured.
    """
    top, good, bad = _commits(asked, here)
    with ExitStack() as stack:
        base, walk = (_opened(stack, top, commit) for commit in (good, bad))
        if asked.build:
            build(asked.build, base.path)
        walker = _Walker(asked, top, here, base.path, walk.path)
        first = walker.measure()
        show(first)
        if first.word != "bad":
            if first.outcome not in ("PASS", "UNDECIDED"):
                raise UsageError(
                    f"BAD ({asked.bad}) cannot be measured against GOOD ({asked.good}): {first.reason}"
                )
            return Found(steps=(first,))
        return _walk(walker, first, good, show)


def _walk(walker: _Walker, first: Step, good: str, show: Callable[[Step], None]) -> Found:
    steps = {first.commit: first}
    walker.narrow(first)
    flags = ["--first-parent"] if walker.asked.first_parent else []
    said = git(walker.tree, "bisect", "start", *flags, first.commit, good)
    while (end := _end(said)) is None:
        step = walker.measure()
        steps[step.commit] = step
        show(step)
        done = run_git(walker.tree, "bisect", step.word)
        said = done.stdout
        if done.returncode != 0 and _end(said) is None:
            raise UsageError(f"git bisect {step.word}: {done.stderr.strip() or said.strip()}")
    found, suspects = end
    return Found(
        steps=tuple(steps.values()), first_bad=steps[found] if found else None, suspects=suspects
    )


def _end(said: str) -> tuple[str | None, tuple[str, ...]] | None:
    """How git's bisection ended: the first bad commit, or those that could be it.

    None while it goes on.
    """
    named = _FIRST_BAD.search(said)
    if named:
        return named[1], (named[1],)
    if "only 'skip'ped commits left" in said:
        return None, tuple(_HEX.findall(said))
    return None


class _Walker:
    """Measures whatever commit its work tree has checked out against GOOD's."""

    def __init__(self, asked: Asked, top: Path, here: Path, base: Path, tree: Path) -> None:
        self.asked = asked
        self.tree = tree
        self._top = top
        self._base = base
        self._inside = here.resolve().relative_to(top)
        self._limit = asked.limit
        self._tests: frozenset[str] = frozenset()

    def narrow(self, bad: Step) -> None:
        """Look for half of BAD's change in BAD's worst test: a commit has the change, or it has not."""
        self._limit = max(self._limit, (bad.worse or 0.0) / 2)
        self._tests = frozenset([bad.test])

    def measure(self) -> Step:
        """One step.

        A commit that cannot be built or run is to be skipped, and so is one that stays undecided.
        """
        commit, subject = git(self.tree, "log", "-1", "--format=%H%n%s").partition("\n")[::2]
        git(self.tree, "clean", "-ffdxq")
        reason = self._built()
        records, said = ([], reason) if reason else self._ran()
        compared = [(record, each) for record in records for each in self._compared(record)]
        if not compared:
            return Step(
                commit=commit,
                subject=subject,
                word="skip",
                outcome="NOT RUN",
                reason=said or "no test measured it",
            )
        record, worst = max(compared, key=lambda pair: _rank(pair[1]))
        return _step(commit, subject, record, worst)

    def _built(self) -> str:
        if not self.asked.build:
            return ""
        try:
            build(self.asked.build, self.tree)
        except UsageError as error:
            return str(error)
        return ""

    def _compared(self, record: Record) -> list[dict[str, Any]]:
        metrics = record.extra.get("against", {}).get("metrics", {})
        wanted = self.asked.metric in metrics and (not self._tests or record.test in self._tests)
        return [metrics[self.asked.metric]] if wanted else []

    def _ran(self) -> tuple[list[Record], str]:
        """The records of one pytest session, and the end of what it said."""
        with tempfile.TemporaryDirectory(prefix="llmperf-bisect-") as folder:
            file = Path(folder) / "records.jsonl"
            done = subprocess.run(  # noqa: S603 - our own interpreter, the user's own arguments
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
            found = (
                [each for each in read(file) if not isinstance(each, BadLine)]
                if file.is_file()
                else []
            )
        tail = " / ".join(
            line.strip() for line in done.stdout.splitlines()[-_TAIL_LINES:] if line.strip()
        )
        return list(
            {record.id: record for record in found}.values()
        ), f"pytest ended with exit code {done.returncode}: {tail}"

    def _command(self, file: Path) -> list[str]:
        against = self._base / _root_inside(self._top / self._inside, self._top)
        return [
            *(sys.executable, "-P", "-m", "pytest", *self.asked.pytest_args),
            *(
                f"--llmperf-against={against}",
                f"--llmperf-against-limits={self.asked.metric}:{self._limit!r}",
            ),
            *("--llmperf-store=none", "--llmperf-gate=off", f"--llmperf-json={file}"),
        ]

    def _environment(self) -> dict[str, str]:
        environ = dict(os.environ)
        drop_steering(environ)
        trees = Trees(head=self._top, base=self.tree)
        return environ | base_environment(trees, environ, self.tree) | {OTHERS: str(self._top)}


def _root_inside(folder: Path, top: Path) -> Path:
    """Where in the repository the root of the tested project is, as pytest finds it."""
    from pytest_llmperf.settings.project import find_project  # noqa: PLC0415

    root = find_project(folder).root
    return root.relative_to(top) if root.is_relative_to(top) else Path()


def _step(commit: str, subject: str, record: Record, metric: dict[str, Any]) -> Step:
    decision = metric.get("decision") or {}
    words: dict[str, Word] = {"FAIL": "bad", "PASS": "good"}
    outcome = str(metric["outcome"])
    ratio, low, high = metric.get("ratio") or (None, None, None)
    return Step(
        commit=commit,
        subject=subject,
        word=words.get(outcome, "skip"),
        outcome=outcome,
        test=record.test,
        ratio=ratio,
        low=low,
        high=high,
        pairs=len(metric.get("pairs", ())),
        evidence=decision.get("e_not_worse" if outcome == "PASS" else "e_worse"),
        worse=decision.get("worse", metric.get("worse")),
        reason=str(metric.get("reason", "")),
    )


def _rank(metric: dict[str, Any]) -> tuple[int, float]:
    """The worst of several tests speaks for a commit: one that failed, else one that did not decide."""
    order = ("PASS", "NOT COMPARABLE", "UNDECIDED", "FAIL")
    return order.index(metric["outcome"]), float(metric.get("worse") or 0.0)


def _commits(asked: Asked, here: Path) -> tuple[Path, str, str]:
    top = top_level(here)
    if top is None:
        raise UsageError(f"{here} is in no git work tree: there are no commits to walk.")
    good, bad = (_commit(top, name) for name in (asked.good, asked.bad))
    if good == bad or run_git(top, "merge-base", "--is-ancestor", good, bad).returncode != 0:
        raise UsageError(
            f"GOOD ({asked.good}) is not an earlier commit than BAD ({asked.bad}), or not on its way: none is between.",
        )
    return top.resolve(), good, bad


def _commit(top: Path, name: str) -> str:
    found = commit_of(top, name)
    if found is None:
        raise UsageError(
            f"{name!r} is no commit of {top}. Name two that git knows: a tag, a branch, a hash."
        )
    return found


def _opened(stack: ExitStack, top: Path, commit: str) -> Worktree:
    made = Worktree(top, commit)
    stack.callback(made.close)
    return made
