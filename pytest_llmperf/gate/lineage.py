"""Whether a stored session is of this line of work: of a clean tree, and of no other branch."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from pytest_llmperf.core.record import Fact
from pytest_llmperf.devices.host import project_facts

MAIN_BRANCHES = ("origin/HEAD", "origin/main", "origin/master", "main", "master")
_MAIN_NAMES = ("main", "master")
_GIT_TIMEOUT_S = 30
DIRTY = "with uncommitted changes"
OTHER_BRANCH = "of another branch"


def lineage_of(root: Path, *, any_tree: bool) -> Lineage | None:
    """The lineage that sessions have to be of; None where any counts (--llmperf-any-tree)."""
    return None if any_tree else Lineage(root)


class Lineage:
    """The commits that this commit, or the main branch, comes from.

    Git is asked once, when the first session has a commit. Without a git work tree nothing can be
    told, and no session is of another branch.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def refuses(self, facts: Mapping[str, Fact]) -> str:
        """Why a session of these facts is none to hold others against; "" if it is one.

        A session that says nothing about its commit is one.
        """
        if facts.get("git_dirty"):
            return DIRTY
        commit = facts.get("git_commit")
        if not commit or not self._commits or str(commit) in self._commits:
            return ""
        return OTHER_BRANCH if self._is_elsewhere(facts.get("git_branch")) else ""

    def _is_elsewhere(self, branch: Fact) -> bool:
        """Whether an unknown commit is of another branch.

        A shallow clone knows few commits: there the branch that the session was recorded on
        decides, as far as it was.
        """
        if not self._is_shallow:
            return True
        return branch is not None and branch not in (self._branch, *_MAIN_NAMES)

    @cached_property
    def _commits(self) -> frozenset[str]:
        tips = ["HEAD", *(name for name in MAIN_BRANCHES if self._git("rev-parse", "-q", name))]
        return frozenset(self._git("rev-list", *tips, "--").split())

    @cached_property
    def _is_shallow(self) -> bool:
        return self._git("rev-parse", "--is-shallow-repository").strip() == "true"

    @cached_property
    def _branch(self) -> Fact:
        return project_facts(self._root)["git_branch"]

    def _git(self, *arguments: str) -> str:
        """What git prints; "" where it fails, or is not there."""
        try:
            process = subprocess.run(  # noqa: S603 - fixed words
                ["git", "--no-optional-locks", *arguments],  # noqa: S607 - the user's git
                cwd=self._root,
                capture_output=True,
                text=True,
                check=False,
                timeout=_GIT_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
            return ""
        return process.stdout if process.returncode == 0 else ""
