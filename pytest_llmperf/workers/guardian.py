"""The process that outlives this one just long enough to kill what its workers left behind.

Started with the first worker.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass

from pytest_llmperf.worker.guard import DETACHED

_END_S = 5.0
_DETACH_S = 60.0  # a Python that starts from a cold disk


@dataclass(frozen=True)
class _Guardian:
    owner_pid: int
    token: str
    process: subprocess.Popen[bytes]


_current: list[_Guardian] = []


def detach() -> None:
    """Start this process's guardian now, and not as its child.

    Ray kills the children of its processes when these end.
    """
    guardian = _start(watched=DETACHED)
    guardian.process.wait(timeout=_DETACH_S)
    _current.append(guardian)


def token() -> str:
    """Return what the token of every worker of this process starts with.

    A forked child gets a guardian of its own.
    """
    if not _current or _current[-1].owner_pid != os.getpid():
        _current.append(_start())
    return _current[-1].token


def _start(watched: int | None = None) -> _Guardian:
    new = f"{uuid.uuid4().hex}."
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [
            sys.executable,
            "-P",
            "-m",
            "pytest_llmperf.worker.guard",
            str(os.getpid() if watched is None else watched),
            new,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return _Guardian(owner_pid=os.getpid(), token=new, process=process)


@atexit.register
def _release() -> None:
    for guardian in _current:
        if guardian.owner_pid == os.getpid() and guardian.process.stdin is not None:
            guardian.process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                guardian.process.wait(timeout=_END_S)
