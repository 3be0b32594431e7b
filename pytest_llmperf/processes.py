"""Ending a worker and everything it started: its process group, and what left the group but kept its environment."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

import psutil

TOKEN = "LLMPERF_WORKER_TOKEN"  # noqa: S105 - marks the processes of one worker, not a secret
CORES = "LLMPERF_CORES"
"""The CPU cores that a worker keeps to, as "0,1,2".

Before torch is imported, which takes its number of threads from them.
"""

_PR_SET_PDEATHSIG = 1


def lead_own_group() -> None:
    """Make this process the leader of its own group, so that killing the group ends nothing else."""
    if os.getpgrp() != os.getpid():
        os.setsid()


def die_with_parent() -> None:
    """On Linux, let the kernel kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def keep_to_cores() -> None:
    """Run on the cores that the session names, where it names some and the system can do that."""
    named = os.environ.get(CORES)
    if named and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in named.split(",")})


def kill_own_group() -> None:
    """End this worker and all it started. Does not return."""
    kill_marked(os.environ.get(TOKEN, ""))
    os.killpg(os.getpgrp(), signal.SIGKILL)


def kill_group(leader_pid: int, token: str) -> None:
    """Kill a worker that is not reaped yet (its id cannot have been reused), its group, and all that carry its token."""
    kill_marked(token)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signal.SIGKILL)


def kill_marked(token: str) -> int:
    """Kill every process whose token starts with `token`, and their descendants, but not this process. Returns how many.

    A process keeps its token when it starts a session of its own, or when its parent has ended. One that has overwritten
    its environment (by setting a process title) is found as a descendant, as long as its parent lives.
    """
    doomed = (
        {process for marked in _marked(token) for process in (marked, *_descendants(marked))}
        if token
        else set()
    )
    killed = 0
    for process in doomed:
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                killed += 1
    return killed


def of_this_session(pid: int) -> bool:
    """Whether a process works for the session that this worker works for: another model's worker, or what one started.

    A side of --llmperf-against has workers of its own, and is itself one of the session's. False for a process that is gone,
    and where this process is no worker.
    """
    return not _sessions(pid).isdisjoint(_sessions(os.getpid()))


def _sessions(pid: int) -> set[str]:
    """What the tokens of a process and of those that it descends from start with: one value a session."""
    found = set()
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.parents()):
            with contextlib.suppress(psutil.Error, OSError):
                found.add(each.environ().get(TOKEN, "").partition(".")[0])
    return found - {""}


def _marked(token: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(TOKEN, "").startswith(token):
                found.append(process)
    return found


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return list(process.children(recursive=True))
    return []
