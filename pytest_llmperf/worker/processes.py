"""Ending a worker and everything it started: its process group, and what left the group but kept its environment."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

import psutil  # type: ignore[import-untyped] # psutil ships no annotations

TOKEN = "LLMPERF_WORKER_TOKEN"  # noqa: S105 - marks the processes of one worker, not a secret
_PR_SET_PDEATHSIG = 1


def lead_own_group() -> None:
    """Make this process the leader of its own group, so that killing the group ends nothing else."""
    if os.getpgrp() != os.getpid():
        os.setsid()


def die_with_parent() -> None:
    """On Linux, let the kernel kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def kill_own_group() -> None:
    """End this worker and all it started. Does not return."""
    kill_marked(os.environ.get(TOKEN, ""))
    os.killpg(os.getpgrp(), signal.SIGKILL)


def kill_group(leader_pid: int, token: str) -> None:
    """Kill the group of a worker that is not reaped yet (its id cannot have been reused), and all that carry its token."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signal.SIGKILL)
    kill_marked(token)


def kill_marked(token: str) -> None:
    """Kill every process but this one whose environment carries `token`: children that started a session of their own."""
    if not token:
        return
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(TOKEN) == token:
                process.kill()
