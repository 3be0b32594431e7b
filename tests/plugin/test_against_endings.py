"""--llmperf-against: a session that is ended while the base runs a test leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.repository import worktrees

from pytest_llmperf.against.worktree import Worktree

WAITS = """
import os, pathlib, pytest, time

@pytest.fixture(autouse=True)
def wait_at_the_base(request):
    if "worktrees" in str(request.config.rootpath):
        pathlib.Path({file!r}).write_text(str(os.getpid()))
        time.sleep(600)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_session_that_is_ended_leaves_no_worktree_after_the_next_start(repo, own_cache, ending):
    """In the middle of a base's test.

    After Ctrl-C nothing is left at once; after kill -9, once another worktree is made.
    """
    repo.commit("slow set-up", **{"conftest.py": WAITS.format(file=str(repo.path / "waits.jsonl"))})
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--llmperf-against=HEAD"]
    process = subprocess.Popen(
        command,
        cwd=repo.path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    side = _wait_for(repo.path / "waits.jsonl")
    assert len(worktrees(own_cache)) == 1
    process.send_signal(ending)
    process.wait(timeout=60)
    if ending is signal.SIGKILL:
        assert len(worktrees(own_cache)) == 1
        Worktree(repo.path, "HEAD", parent=own_cache / "worktrees").close()
    assert worktrees(own_cache) == []
    assert repo.git("worktree", "list").count("\n") == 0
    assert _soon(lambda: gone(side))


def gone(pid: int) -> bool:
    """Whether no process of that id runs."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _wait_for(path: Path) -> int:
    assert _soon(lambda: path.is_file() and path.read_text())
    return int(path.read_text())


def _soon(condition) -> bool:
    end_s = time.monotonic() + 60
    while not (holds := condition()) and time.monotonic() < end_s:
        time.sleep(0.05)
    return bool(holds)
