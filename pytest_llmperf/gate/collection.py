"""What pytest collected: which llmperf tests there are, and which files were looked into as a whole.

A test that was not collected is gone only if nobody asked for less than its whole file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The llmperf tests (before any was deselected), the files collected in full, and those that are no longer there."""

    root: Path
    tests: frozenset[str]
    files: frozenset[str]
    asked: tuple[str, ...]

    def knows(self, file: str) -> bool:
        """Whether every test of the file was collected: it was asked for as a whole, or it does not exist any more."""
        if file in self.files:
            return True
        path = self.root / file
        return bool(file) and not path.exists() and self.asked_for(path)

    def sendable(self) -> dict[str, list[str]]:
        """As pytest-xdist can carry it from a worker to its controller."""
        return {"tests": sorted(self.tests), "files": sorted(self.files), "asked": list(self.asked)}

    def asked_for(self, path: Path) -> bool:
        """Whether a path is below one that pytest was asked for as a whole."""
        return any(Path(folder) in (path, *path.parents) for folder in self.asked)


def received(root: Path, sent: Iterable[dict[str, Any]]) -> Collected:
    """What xdist's workers collected, each the same."""
    parts = list(sent)
    return Collected(
        root=root,
        tests=frozenset(test for part in parts for test in part["tests"]),
        files=frozenset(file for part in parts for file in part["files"]),
        asked=tuple(dict.fromkeys(folder for part in parts for folder in part["asked"])),
    )


@dataclass
class Collecting:
    """Notes what is collected while it is."""

    config: pytest.Config
    _tests: set[str] = field(default_factory=set)
    _visited: set[str] = field(default_factory=set)
    _broken: set[str] = field(default_factory=set)

    def item(self, item: pytest.Item) -> None:
        """An llmperf test was found."""
        self._tests.add(item.nodeid)

    def report(self, report: pytest.CollectReport) -> None:
        """A file or a class was looked into.

        Where that failed or was skipped, its tests are unknown.
        """
        (self._visited if report.passed else self._broken).add(report.nodeid)

    def done(self) -> Collected:
        """All of it."""
        here = self.config.invocation_params.dir
        # --lf leaves tests out while it collects.
        partial = getattr(self.config.option, "lf", False)
        asked = (
            []
            if partial
            else [str((here / arg).resolve()) for arg in self.config.args if "::" not in arg]
        )
        found = Collected(
            root=self.config.rootpath.resolve(),
            tests=frozenset(self._tests),
            files=frozenset(),
            asked=tuple(asked),
        )
        broken = {nodeid.partition("::")[0] for nodeid in self._broken}
        whole = {
            nodeid
            for nodeid in self._visited - broken
            if "::" not in nodeid and found.asked_for(found.root / nodeid)
        }
        return Collected(
            root=found.root, tests=found.tests, files=frozenset(whole), asked=found.asked
        )
