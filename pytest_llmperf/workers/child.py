"""A worker's process, whichever way it was started: whether it has ended, how, and its reaping.

Its process id cannot be reused before it is reaped.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from typing import Protocol

from pytest_llmperf.workers.forkservers import ForkServer


class Child(Protocol):
    """A process that this one, or a fork server of this one, has started."""

    pid: int

    def exited(self) -> bool:
        """Whether the process has ended. Does not reap it."""

    def exit_code(self) -> int | None:
        """Return the exit code as subprocess reports it: negative for a signal.

        None while the process runs, or when something else reaped it.
        """

    @property
    def is_reaped(self) -> bool:
        """Whether `reap` has seen its end."""

    @property
    def holds_pid(self) -> bool:
        """Whether no other process can have been given its process id."""

    def reap(self, timeout_s: float) -> None:
        """Wait for the end, at most `timeout_s`, and give the process id back."""


class StartedChild:
    """A program that this process has started. See `Child`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process

    def exited(self) -> bool:
        """Whether the process has ended. Does not reap it."""
        if self._process.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def exit_code(self) -> int | None:
        """See `Child`."""
        if self._process.returncode is not None:
            return self._process.returncode
        with contextlib.suppress(ChildProcessError):
            status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if status is not None:
                return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
        return None

    @property
    def is_reaped(self) -> bool:
        """Whether `reap` has seen its end."""
        return self._process.returncode is not None

    @property
    def holds_pid(self) -> bool:
        """Whether no other process can have been given its process id."""
        return not self.is_reaped

    def reap(self, timeout_s: float) -> None:
        """See `Child`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A process in an uninterruptible driver call outlasts SIGKILL for a while.
            self._process.wait(timeout=timeout_s)


class ForkedChild:
    """A fork of a fork server, which reaps it when this process says so. See `Child`.

    Where the server has died, the system has reaped it.
    """

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid = pid
        self.is_reaped = False
        self._server = server
        self._pidfd = os.pidfd_open(pid)
        self._exit_code: int | None = None

    def exited(self) -> bool:
        """Whether the process has ended. Does not reap it."""
        return self.is_reaped or self._ends_within(0.0)

    def exit_code(self) -> int | None:
        """See `Child`."""
        if self._exit_code is None and not self.is_reaped:
            self._exit_code = self._server.exit_code(self.pid, reap=False)
        return self._exit_code

    @property
    def holds_pid(self) -> bool:
        """Whether no other process can have been given its process id."""
        return not self.is_reaped and (self._server.is_alive or not self.exited())

    def reap(self, timeout_s: float) -> None:
        """See `Child`."""
        if not self.is_reaped and self._ends_within(timeout_s):
            self._exit_code = self._server.exit_code(self.pid, reap=True)
            self.is_reaped = True
            os.close(self._pidfd)

    def _ends_within(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
