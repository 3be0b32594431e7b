"""Ending a worker and everything it started.

That is its process group, and what left the group but kept its environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from itertools import chain
from pathlib import Path

import psutil

TOKEN = "LLMPERF_WORKER_TOKEN"  # noqa: S105 - marks the processes of one worker, not a secret
CORES = "LLMPERF_CORES"
"""The CPU cores that a worker keeps to, as "0,1,2".

It does so before torch is imported, which takes its number of threads from them.
"""

_PR_SET_PDEATHSIG = 1


def lead_own_group() -> None:
    """Make this process lead its own group, so that killing the group ends nothing else."""
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


def process_state(pid: int) -> str:
    """Return the letter of a process's state as the kernel shows it, "gone", or "unknown"."""
    if sys.platform != "linux":
        return "unknown"
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "gone"
    return text.rpartition(")")[2].split()[0]


def kill_own_group() -> None:
    """End this worker and all it started. Does not return."""
    kill_marked(os.environ.get(TOKEN, ""))
    os.killpg(os.getpgrp(), signal.SIGKILL)


def kill_group(leader_pid: int, token: str) -> None:
    """Kill a worker, its group, and all that carry its token.

    The worker must not be reaped yet, so that its id cannot have been reused.
    """
    kill_marked(token)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signal.SIGKILL)


def kill_marked(token: str) -> int:
    """Kill every process whose token starts with `token`, and their descendants. Returns how many.

    This process is spared. A process keeps its token when it starts a session of its own, or when
    its parent has ended. One that has overwritten its environment (by setting a process title) is
    found as a descendant, as long as its parent lives.
    """
    marked = _marked(token) if token else []
    trees = [(process, *_descendants(process)) for process in marked]
    return sum(_kill(process) for process in set(chain.from_iterable(trees)))


def _kill(process: psutil.Process) -> bool:
    """Kill a process other than this one; return whether it was there to be killed."""
    with contextlib.suppress(psutil.Error):
        if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
            process.kill()
            return True
    return False


def of_this_session(pid: int) -> bool:
    """Whether a process works for the session that this worker works for.

    It is another model's worker then, or what one started. A side of --llmperf-against has workers
    of its own, and is itself one of the session's. False for a process that is gone, and where this
    process is no worker.
    """
    return not _sessions(pid).isdisjoint(_sessions(os.getpid()))


def _sessions(pid: int) -> set[str]:
    """Return how the tokens of a process and of its ancestors start: one value a session."""
    sessions = set()
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for ancestor in (process, *process.parents()):
            sessions.add(_token(ancestor).partition(".")[0])
    return sessions - {""}


def _marked(token: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _token(process).startswith(token)]


def _token(process: psutil.Process) -> str:
    """Return the token of a process; an empty text where it has none, or cannot be read."""
    with contextlib.suppress(psutil.Error, OSError):
        return str(process.environ().get(TOKEN, ""))
    return ""


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return list(process.children(recursive=True))
    return []
