"""One worker process as the session sees it.

It is started with a socket and a log, watched, and killed with all its children.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pytest_llmperf.processes import TOKEN, kill_group, kill_marked, process_state
from pytest_llmperf.wire.frames import Wire, parent_end
from pytest_llmperf.wire.messages import FromWorker
from pytest_llmperf.workers import forkservers, guardian, logs
from pytest_llmperf.workers.child import Child, ForkedChild, StartedChild

LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
WORKER = ("-m", "pytest_llmperf.worker")
"""What the interpreter runs: the program of a worker."""

_LOOPBACK = "127.0.0.1"
_LOOPBACK_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"
_POLL_S = 0.02
_STACKS_S = 3.0
_REAP_S = 10.0
_UNRESPONSIVE = ("T", "t", "Z", "gone")  # stopped, traced, zombie: no signal handler runs


class Worker(Protocol):
    """One rank's process as its group and its exchanges see it, wherever it runs."""

    rank: int
    log: Path
    wire: Wire[FromWorker]
    pid: int
    greeted: bool

    @property
    def where(self) -> str:
        """What a message calls the process: its id, and the host where that is not this one."""

    def exited(self) -> bool:
        """Whether the process has ended."""

    def wait_exited(self, timeout_s: float) -> bool:
        """Whether the process has ended, after waiting for it at most `timeout_s`."""

    def kill(self) -> None:
        """End the process and all that it started. May be called again."""

    def exit_text(self) -> str:
        """How the process ended, after `exited`."""

    def exit_code(self) -> int | None:
        """Return the exit code as subprocess reports it; None while it runs or if not known."""

    def stacks(self) -> str:
        """Stacks of all threads, or why there are none."""

    def log_tail(self, lines: int) -> str:
        """The last lines of its output."""


class WorkerProcess:
    """A started worker.

    Its process id cannot be reused before `kill` returns, because nothing else reaps it.
    """

    def __init__(
        self,
        child: Child,
        wire: Wire[FromWorker],
        *,
        rank: int,
        log: Path,
        token: str,
    ) -> None:
        self.rank = rank
        self.log = log
        self.wire = wire
        self.pid = child.pid
        self.greeted = False
        self._child = child
        self._token = token
        logs.watch(log)

    @classmethod
    def start(
        cls,
        *,
        python: str,
        rank: int,
        world_size: int,
        log: Path,
        env: Mapping[str, str],
        program: Sequence[str] = WORKER,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> WorkerProcess:
        """Start one rank in a session and process group of its own; its output goes to `log`.

        Raises OSError.

        `pass_fds` are inherited besides its socket, under the same numbers.
        """
        session_end, worker_end = socket.socketpair()
        token = f"{guardian.token()}{uuid.uuid4().hex}"
        fd = worker_end.fileno()
        try:
            with worker_end, logs.create(log) as output:
                process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    _command([python, *program], fd, rank, world_size),
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**env, TOKEN: token, "PYTHONUNBUFFERED": "1"},
                    pass_fds=(fd, *pass_fds),
                    start_new_session=True,
                )
        except BaseException:
            session_end.close()
            raise
        child = StartedChild(process)
        return cls(child, parent_end(session_end), rank=rank, log=log, token=token)

    @classmethod
    def fork(
        cls,
        *,
        python: str,
        engine: str,
        rank: int,
        log: Path,
        env: Mapping[str, str],
        deadline_s: float,
    ) -> WorkerProcess:
        """Fork one rank from a server that has imported the engine, otherwise as `start` does.

        Raises CannotForkError.
        """
        session_end, worker_end = socket.socketpair()
        token = f"{guardian.token()}{uuid.uuid4().hex}"
        try:
            with worker_end, logs.create(log) as output:
                pid, server = forkservers.fork(
                    python=python,
                    engine=engine,
                    rank=rank,
                    token=token,
                    environment=env,
                    descriptors=(worker_end.fileno(), output.fileno()),
                    deadline_s=deadline_s,
                )
        except BaseException:
            session_end.close()
            raise
        child = ForkedChild(pid, server)
        return cls(child, parent_end(session_end), rank=rank, log=log, token=token)

    def exited(self) -> bool:
        """Whether the process has ended. Does not reap it."""
        return self._child.exited()

    def wait_exited(self, timeout_s: float) -> bool:
        """Whether the process has ended, after waiting for it at most `timeout_s`."""
        end_s = time.monotonic() + timeout_s
        while not self.exited():
            if time.monotonic() >= end_s:
                return False
            time.sleep(_POLL_S)
        return True

    def kill(self) -> None:
        """SIGKILL to the process group and to everything that carries this worker's token; reap.

        May be called again.
        """
        if not self._child.is_reaped:
            if self._child.holds_pid:
                kill_group(self.pid, self._token)
            self._child.reap(_REAP_S)
            kill_marked(self._token)  # what a dying child started between the two looks
        logs.unwatch(self.log)
        self.wire.close()

    def exit_text(self) -> str:
        """How the process ended, after `exited`: "exit code 3" or "signal SIGKILL"."""
        return exit_text(self.exit_code())

    @property
    def where(self) -> str:
        """Its process id, and where that is one."""
        return f"pid {self.pid}"

    def exit_code(self) -> int | None:
        """Return the exit code as subprocess reports it: negative for a signal.

        None while the process runs, or when something else reaped it.
        """
        return self._child.exit_code()

    def stacks(self) -> str:
        """Return the stacks of all threads, or why there are none.

        The worker's signal handler writes them to its log.
        """
        if not self.greeted:
            return "(the worker had not come up; see its log)"
        with logs.uncut():
            start = logs.size(self.log)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)
            self._wait_log_settled(start)
            text = logs.stacks(self.log, start)
        unresponsive = "the process does not react to signals; its state is"
        return text or f"(no stacks: {unresponsive} {process_state(self.pid)})"

    def log_tail(self, lines: int) -> str:
        """The last lines of the worker's output."""
        return logs.tail(self.log, lines)

    def _wait_log_settled(self, start: int) -> None:
        """Wait until the stacks are written, or the worker floods its log."""
        end_s = time.monotonic() + _STACKS_S
        size, settled = start, False
        while (
            not settled
            and time.monotonic() < end_s
            and size - start < logs.STACKS_BYTES
            and process_state(self.pid) not in _UNRESPONSIVE
        ):
            time.sleep(_POLL_S * 3)
            size_before, size = size, logs.size(self.log)
            settled = start < size == size_before


def exit_text(code: int | None) -> str:
    """Return an exit code of subprocess in words; None stands for one that is not known."""
    if code is None:
        return "an unknown exit status (something else reaped it)"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def rank_environment(
    *, rank: int, ranks: int, port: int, base: Mapping[str, str], host: str = _LOOPBACK
) -> dict[str, str]:
    """Return `base` with the variables that torch.distributed reads, for more than one rank.

    The ranks meet at that host and port. One rank gets none of them, not even inherited ones:
    libraries take a lone LOCAL_RANK for a launcher and start a process group.
    """
    env = {name: value for name, value in base.items() if name not in LAUNCHER_VARIABLES}
    if ranks > 1:
        env |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
        }
        env |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
        if host == _LOOPBACK:  # else they listen where the host's name leads
            env.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK_INTERFACE)
            env.setdefault("NCCL_SOCKET_IFNAME", _LOOPBACK_INTERFACE)
        # Ranks of one host share its cores.
        env.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    return env


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _command(program: Sequence[str], fd: int, rank: int, world_size: int) -> list[str]:
    command = [*program, "--fd", str(fd), "--rank", str(rank), "--world-size", str(world_size)]
    # The kernel sends the death signal when the starting thread ends, so only the main thread may
    # ask for it.
    if threading.current_thread() is threading.main_thread():
        command.append("--die-with-parent")
    return command


def _responds(pid: int) -> bool:
    """Whether the process would run its handler of a signal."""
    return process_state(pid) not in _UNRESPONSIVE
