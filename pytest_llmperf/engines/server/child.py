"""A server as a child of the worker: started on a free loopback port, watched, its log kept, ended with all that it started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from pytest_llmperf.errors import UsageError
from pytest_llmperf.processes import TOKEN, kill_marked

LOG_LINES = 30
_TAIL_BYTES = 2**15
_REAP_S = 5.0


class Child:
    """A server process, in a group of its own.

    What carries its token is its own, whatever group or session it went to.
    """

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], log: Path) -> None:
        self.command = tuple(command)
        self.log = log
        self._token = f"{os.environ.get(TOKEN, 'llmperf')}.server-{os.urandom(8).hex()}"
        self._process = _start(
            self.command, {**os.environ, **env, TOKEN: self._token, "PYTHONUNBUFFERED": "1"}, log
        )

    @property
    def pid(self) -> int:
        """Of the first process."""
        return self._process.pid

    def died(self) -> str:
        """How it ended, with the tail of its log; empty while it runs."""
        code = self._process.poll()
        if code is None:
            return ""
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the server ended with {how}. {self.tail()}"

    def tail(self) -> str:
        """The last lines of its output."""
        size = self.log.stat().st_size if self.log.exists() else 0
        if not size:
            return f"It wrote nothing ({self.log})."
        with self.log.open("rb") as file:
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
        return f"Last lines of {self.log}:\n" + "\n".join(lines)

    def resident_bytes(self) -> int:
        """Resident memory of the process and its descendants."""
        return sum(_resident(process) for process in self._tree())

    def busy_s(self) -> float:
        """CPU time of the process and its descendants so far."""
        return sum(_busy(process) for process in self._tree())

    def end(self, grace_s: float) -> None:
        """SIGTERM to the group, time to go, then SIGKILL to the group and to all that carries the token. May be called again."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=grace_s)
        self._signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_REAP_S)
        kill_marked(self._token)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        return []


def _start(command: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    try:
        with log.open("wb") as output:
            return subprocess.Popen(  # noqa: S603 - the command is the user's own choice
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(env),
                start_new_session=True,
            )
    except OSError as error:
        raise UsageError(f"the server's command {command[0]!r} cannot be run: {error}.") from error


def log_file(name: str) -> Path:
    """Where a server's output goes: beside the worker's own log, where that is a file."""
    try:
        own = Path("/proc/self/fd/2").readlink()
    except OSError:
        own = Path()
    folder = own.parent if own.is_file() else Path(tempfile.mkdtemp(prefix="llmperf-server-"))
    safe = "".join(c if c.isalnum() or c in "-._" else "-" for c in name)
    return folder / f"{safe}-{os.getpid()}-{time.time_ns() % 10**9}.log"


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def find_program(name: str, named: str, variable: str) -> str:
    """The executable: as the option names it, as the environment does, beside this interpreter, or on the PATH.

    Raises UsageError where there is none.
    """
    for chosen, where in (
        (named, "option 'program'"),
        (os.environ.get(variable, ""), f"${variable}"),
    ):
        if chosen:
            found = shutil.which(chosen)
            if found is None:
                raise UsageError(f"{where} = {chosen!r}: that cannot be run.")
            return found
    beside = Path(sys.executable).parent / name
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        raise UsageError(
            f"the server program {name!r} is not installed: not beside {sys.executable}, not on the PATH. "
            f"Name it by option 'program', or by ${variable}.",
        )
    return found


def _resident(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def _busy(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0
