"""`python -m pytest_llmperf.worker.guard PID TOKEN`.

It waits for the end of the session PID, then kills what that left behind. With PID 0 it leaves its
parent first, for a parent whose end takes its children along, and watches the pipe alone.

The guard is a process of its own, because a killed session cannot clean up, and a worker that the
kernel kills with it cannot either: what that worker started in a session of its own would live on.
The guard's standard input is a pipe from the session.
"""

from __future__ import annotations

import os
import select
import sys

from pytest_llmperf.processes import kill_marked

LOOK_S = 1.0
MAX_ROUNDS = 100
DETACHED = 0


def main(argv: list[str]) -> None:
    """Block until the session is gone, then kill all that carry its token, until none is left."""
    session_pid, token = int(argv[0]), argv[1]
    if session_pid == DETACHED and os.fork():
        os._exit(0)
    wait_for_end(session_pid)
    for _ in range(MAX_ROUNDS):
        if not kill_marked(token):
            break


def wait_for_end(session_pid: int) -> None:
    """Return when standard input ends, or when the parent is another process.

    A fork of the session may hold the pipe, so that it does not end.
    """
    while session_pid in {DETACHED, os.getppid()}:
        readable, _, _ = select.select([sys.stdin], [], [], LOOK_S)
        if readable:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
