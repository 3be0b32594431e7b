"""What pytest collected: the llmperf tests, and the files that were looked into as a whole.

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
    """The llmperf tests (before any was deselected) and the files that were collected in full.

    `paths` are the files and folders that pytest was asked for as a whole.
    """

    root: Path
    tests: frozenset[str]
    files: frozenset[str]
    paths: tuple[str, ...]

    def knows(self, file: str) -> bool:
        """Whether every test of the file was collected.

        It was asked for as a whole, or it does not exist any more.
        """
        if file in self.files:
            return True
        return bool(file) and self._was_removed(self.root / file)

    def _was_removed(self, path: Path) -> bool:
        """Whether a path that was asked for as a whole does not exist any more."""
        return not path.exists() and _is_below(path, self.paths)

    def sendable(self) -> dict[str, list[str]]:
        """The same as pytest-xdist can carry it from a worker to its controller."""
        return {"tests": sorted(self.tests), "files": sorted(self.files), "paths": list(self.paths)}


def received(root: Path, sent: Iterable[dict[str, Any]]) -> Collected:
    """What xdist's workers collected, each the same."""
    parts = list(sent)
    return Collected(
        root=root,
        tests=frozenset(test for part in parts for test in part["tests"]),
        files=frozenset(file for part in parts for file in part["files"]),
        paths=tuple(dict.fromkeys(path for part in parts for path in part["paths"])),
    )


@dataclass
class Collecting:
    """Notes what is collected while it is."""

    config: pytest.Config
    _tests: set[str] = field(default_factory=set)
    _visited: set[str] = field(default_factory=set)
    _broken: set[str] = field(default_factory=set)

    def item(self, item: pytest.Item) -> None:
        """Note an llmperf test."""
        self._tests.add(item.nodeid)

    def report(self, report: pytest.CollectReport) -> None:
        """Note a file or a class that was looked into.

        Where that failed or was skipped, its tests are unknown.
        """
        (self._visited if report.passed else self._broken).add(report.nodeid)

    def done(self) -> Collected:
        """Everything that was collected."""
        root = self.config.rootpath.resolve()
        paths = self._paths()
        return Collected(
            root=root,
            tests=frozenset(self._tests),
            files=frozenset(file for file in self._files() if _is_below(root / file, paths)),
            paths=paths,
        )

    def _paths(self) -> tuple[str, ...]:
        """The files and folders of the command line that are not parts of a file."""
        # --lf leaves tests out while it collects.
        if getattr(self.config.option, "lf", False):
            return ()
        return tuple(map(self._resolved, self._whole_arguments()))

    def _whole_arguments(self) -> list[str]:
        return [argument for argument in self.config.args if "::" not in argument]

    def _resolved(self, argument: str) -> str:
        return str((self.config.invocation_params.dir / argument).resolve())

    def _files(self) -> set[str]:
        """The files that were looked into without an error in them."""
        broken = {nodeid.partition("::")[0] for nodeid in self._broken}
        return {nodeid for nodeid in self._visited - broken if "::" not in nodeid}


def _is_below(path: Path, folders: Iterable[str]) -> bool:
    """Whether a path is one of these or inside of one."""
    return any(Path(folder) in (path, *path.parents) for folder in folders)
