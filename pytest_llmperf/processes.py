"""Ending a worker and everything it started.

That is its process group, and what left the group but kept its environment.
"""

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

It does so before torch is imported, which takes its number of threads from them.
"""

_PR_SET_PDEATHSIG = 1


def lead_own_group() -> None:
    """Make this process the leader of its own group, so that killing that ends nothing else."""
    if os.getpgrp() != os.getpid():
        os.setsid()


def die_with_parent() -> None:
    """On Linux, let the kernel kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def keep_to_cores() -> None:
    """Run on the cores that the session names, where it names some and the system can do that."""
    cores = os.environ.get(CORES)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})


def kill_own_group() -> None:
    """End this worker and all it started. Does not return."""
    kill_marked(os.environ.get(TOKEN, ""))
    os.killpg(os.getpgrp(), signal.SIGKILL)


def kill_group(leader_pid: int, token: str) -> None:
    """Kill a worker, its group, and all that carry its token.

    The worker is not reaped yet, so that its id cannot have been reused.
    """
    kill_marked(token)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signal.SIGKILL)


def kill_marked(token: str) -> int:
    """Kill every process whose token starts with `token`, and their descendants.

    Return how many were killed; this process is not one of them. A process keeps its token when it
    starts a session of its own, or when its parent has ended. One that has overwritten its
    environment (by setting a process title) is found as a descendant, as long as its parent lives.
    """
    killed = 0
    for process in _marked_with_descendants(token):
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                killed += 1
    return killed


def of_this_session(pid: int) -> bool:
    """Whether a process works for the session that this worker works for.

    It is another model's worker, or what one started. A side of --llmperf-against has workers of
    its own, and is itself one of the session's. False for a process that is gone, and where this
    process is no worker.
    """
    return not _sessions(pid).isdisjoint(_sessions(os.getpid()))


def _sessions(pid: int) -> set[str]:
    """Return what the tokens of a process and of its ancestors start with: one value a session."""
    sessions = set()
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for ancestor in (process, *process.parents()):
            sessions.add(_token(ancestor).partition(".")[0])
    return sessions - {""}


def _marked_with_descendants(token: str) -> set[psutil.Process]:
    """Return the processes whose token starts with `token`, and their descendants."""
    if not token:
        return set()
    marked = [process for process in psutil.process_iter() if _token(process).startswith(token)]
    return {*marked, *(child for process in marked for child in _descendants(process))}


def _token(process: psutil.Process) -> str:
    """Return the token in a process's environment; empty where it has none or is out of reach."""
    with contextlib.suppress(psutil.Error, OSError):
        return str(process.environ().get(TOKEN, ""))
    return ""


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return list(process.children(recursive=True))
    return []
