"""A commit's files in a folder of their own (git worktree).

It is removed when it is closed, or at the next start after a kill.
"""

from __future__ import annotations

import atexit
import os
import shutil
import uuid
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_llmperf.cache_folder import cache_dir
from pytest_llmperf.settings.git import git, run_git

_LOCK = "owner.lock"
_REPOSITORY = "repository"
_TREE = "tree"


class Worktree:
    """A detached work tree of `commit` of the repository at `top`.

    Its owner holds a lock that the kernel frees with it.

    Raises:
        UsageError: git cannot make it.
    """

    def __init__(self, top: Path, commit: str, *, parent: Path | None = None) -> None:
        self.top = top
        self._owner_pid = os.getpid()
        self._place = _new_place(parent or default_parent())
        self._lock = FileLock(self._place / _LOCK)
        self._lock.acquire()
        (self._place / _REPOSITORY).write_text(str(top), encoding="utf-8")
        self.path = (self._place / _TREE).resolve()
        atexit.register(self.close)
        try:
            git(top, "worktree", "add", "--detach", "--force", str(self.path), commit)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the folder and git's note of it.

        May be called again; does nothing in a forked child.
        """
        if self._is_owned_here():
            _remove(self._place)
            self._lock.release()
        atexit.unregister(self.close)

    def _is_owned_here(self) -> bool:
        """Whether it is not closed yet, and this is the process that made it."""
        return self._lock.is_locked and os.getpid() == self._owner_pid


def _new_place(parent: Path) -> Path:
    """Make an empty folder, after removing those whose owner is gone."""
    remove_abandoned(parent)
    place = parent / uuid.uuid4().hex[:12]
    place.mkdir(parents=True)
    return place


def default_parent() -> Path:
    """Return where work trees are made: the user's cache folder, which has room for a checkout."""
    return cache_dir() / "worktrees"


def remove_abandoned(parent: Path) -> int:
    """Remove the work trees whose owner is gone. Returns how many."""
    removed = 0
    for place in parent.iterdir() if parent.is_dir() else ():
        if not (place / _LOCK).is_file():  # its owner is just making it, or just removing it
            continue
        lock = FileLock(place / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _remove(place)
        lock.release()
        removed += 1
    return removed


def _remove(place: Path) -> None:
    """Remove git's note of the tree first, then the folder.

    `git worktree prune` would drop the user's own notes of folders that are not mounted now.
    """
    note = place / _REPOSITORY
    if note.is_file():
        _forget_in_git(note.read_text(encoding="utf-8"), place)
    shutil.rmtree(place, ignore_errors=True)


def _forget_in_git(repository: str, place: Path) -> None:
    """Remove git's note of the tree, unless the repository itself is gone."""
    tree = str((place / _TREE).resolve())
    if Path(repository).is_dir():
        run_git(Path(repository), "worktree", "remove", "--force", "--force", tree)
