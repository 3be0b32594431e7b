"""The base side, as this session holds it.

Its tree is made when it is first needed; its process is started, asked, and ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_llmperf.against.invocation import SPEC_FILE, hand_over, invocation, public
from pytest_llmperf.against.trees import Trees, base_environment, other_trees
from pytest_llmperf.against.worktree import Worktree
from pytest_llmperf.errors import InvalidRun, LlmperfError, UsageError
from pytest_llmperf.settings.against_target import Target
from pytest_llmperf.settings.settings import Settings
from pytest_llmperf.wire.commands import (
    Command,
    GiveBack,
    GoOn,
    LeaveTest,
    MeasureBlock,
    R,
    RunTest,
)
from pytest_llmperf.wire.results import BlockMeasured, Ended, Reached
from pytest_llmperf.workers.group import WorkerGroup

_SIDE = ("-P", "-m", "pytest_llmperf.against.side")
_START_S = 120.0
_TAIL_LINES = 20


class Base:
    """The other version of the project, and the process that runs its tests.

    Nothing is made before the first `reach`.
    """

    def __init__(
        self, target: Target, config: pytest.Config, settings: Settings, log_dir: Path
    ) -> None:
        self.target = target
        self.node_ids: Sequence[str] = ()
        self._config = config
        self._settings = settings
        self._log_dir = log_dir
        self._worktree: Worktree | None = None
        self._side: WorkerGroup | None = None
        self._test = ""
        self._waits = False

    def reach(
        self, test: str, following: str | None, *, release: bool, gpus: tuple[str, ...]
    ) -> Reached | Ended:
        """Let the base's test run until it wants to measure, from its start or from where it waits.

        `gpus` are the devices that this session holds. `release`: both versions do not fit on them
        together.

        Raises WorkerError and UsageError: the base cannot be made, started or reached; it is
        started anew for the next test.
        """
        if self._test != test:
            self.leave()
            self._test = test
            command = RunTest(nodeid=test, next_nodeid=following, release=release, gpus=gpus)
            return self._arrived(self._ask(command))
        if not self._waits:
            return Ended(outcome="passed", message="it measures less often")
        return self._arrived(self._ask(GoOn(gpus=gpus)))

    def block(self, command: MeasureBlock) -> BlockMeasured:
        """Measure once what the base's test waits to measure.

        Raises InvalidRun, and whatever fails in its test or worker.
        """
        try:
            result = self._ask(command)
        except LlmperfError as error:
            self._waits = isinstance(error, InvalidRun)
            raise
        return result

    def give_back(self) -> None:
        """Close what the base has on GPUs, where it waits."""
        if self._waits:
            self._ask(GiveBack())

    def leave(self) -> None:
        """End the base's test where it waits."""
        self._test = ""
        if self._waits:
            self._waits = False
            self._ask(LeaveTest())

    def close(self) -> None:
        """End the process and remove the tree. May be called again."""
        self._waits = False
        try:
            if self._side is not None:
                self._side.close()
        finally:
            self._side = None
            if self._worktree is not None:
                self._worktree.close()
            self._worktree = None

    def _arrived(self, result: Reached | Ended) -> Reached | Ended:
        self._waits = isinstance(result, Reached)
        return result

    def _ask(self, command: Command[R]) -> R:
        side = self._running()
        # A test may load a model, run another part of itself, or measure a whole block before it
        # answers.
        return side.call(command, deadline_s=2 * self._settings.timeout_s)

    def _running(self) -> WorkerGroup:
        if self._side is None or not self._side.alive:
            self._waits = False
            self._side = self._start()
        return self._side

    def _start(self) -> WorkerGroup:
        trees = self.trees()
        is_interpreter = self.target.kind == "interpreter"
        pythons = {} if is_interpreter else self._settings.pythons
        server = self.target.text if self.target.kind == "server" else ""
        spec = invocation(self._config, trees, self.node_ids, pythons, server)
        cwd = trees.in_base(spec.cwd)
        file = hand_over(spec)
        environment = base_environment(trees, os.environ, spec.cwd)
        try:
            return WorkerGroup.start(
                python=str(self.target.path) if is_interpreter else sys.executable,
                log_dir=self._log_dir,
                env={**environment, SPEC_FILE: str(file)},
                name="base",
                start_deadline_s=_START_S,
                program=(*_SIDE, "--spec", public(spec)),
                cwd=cwd if cwd.is_dir() else trees.base,
            )
        finally:
            file.unlink(missing_ok=True)  # the side has read it before it says hello

    def trees(self) -> Trees:
        """Return our tree and the base's, which is made for a commit. Raises UsageError."""
        root, others = self._settings.root.resolve(), other_trees(os.environ)
        if self.target.kind in {"interpreter", "server"}:
            return Trees(head=root, base=root, others=others)
        if self.target.kind == "folder":
            return Trees(head=root, base=self.target.path, others=others)
        if self._worktree is None:
            self._worktree = self._new_worktree()
        return Trees(head=self.target.path.resolve(), base=self._worktree.path, others=others)

    def _new_worktree(self) -> Worktree:
        assert self.target.commit is not None  # noqa: S101 - a revision is a commit
        worktree = Worktree(self.target.path, self.target.commit)
        if self._settings.against_build:
            _build_or_close(worktree, self._settings.against_build)
        return worktree


def _build_or_close(worktree: Worktree, command: str) -> None:
    """Build the project in a new tree, and remove the tree where that fails."""
    try:
        build(command, worktree.path)
    except BaseException:
        worktree.close()
        raise


def build(command: str, tree: Path) -> None:
    """Run the user's shell command in a fresh tree.

    Raises UsageError with the end of its output.
    """
    process = subprocess.run(  # noqa: S602 - the user's own command
        command,
        cwd=tree,
        shell=True,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if process.returncode != 0:
        tail = "\n".join(process.stdout.splitlines()[-_TAIL_LINES:])
        raise UsageError(
            f"--llmperf-against-build={command!r} ended with exit code {process.returncode} "
            f"at the base:\n{tail}"
        )
