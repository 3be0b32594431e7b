"""A server as a child of the worker.

It is started on a free loopback port, watched, its log kept, and ended with all that it started.
"""

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
from pytest_llmperf.instruments.cpu_time import trees_s
from pytest_llmperf.processes import TOKEN, kill_marked

LOG_LINES = 30
UNPRINTABLE = "\ufffd"
_TAIL_BYTES = 2**15
_BEGINNING_BYTES = 2**20
_REAP_S = 5.0
_END_S = 30.0


class Child:
    """A server process, in a group of its own.

    Every process that carries its token is its own, whatever group or session it went to.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        at_end: Sequence[str] = (),
    ) -> None:
        self.command = tuple(command)
        self.log = log
        self._at_end = tuple(at_end)
        self._token = f"{os.environ.get(TOKEN, 'llmperf')}.server-{os.urandom(8).hex()}"
        own = {TOKEN: self._token, "PYTHONUNBUFFERED": "1"}
        self._process = _start(self.command, {**os.environ, **env, **own}, log)

    @property
    def pid(self) -> int:
        """The id of the first process."""
        return self._process.pid

    def died(self) -> str:
        """Say how it ended, with the tail of its log; empty while it runs."""
        code = self._process.poll()
        if code is None:
            return ""
        return f"the server ended with {_cause_of(code)}. {self.tail()}"

    def tail(self) -> str:
        """Return the last lines of its output."""
        size = _size_of(self.log)
        if not size:
            return f"It wrote nothing ({self.log})."
        return f"Last lines of {self.log}:\n" + "\n".join(_last_lines(self.log, size))

    def beginning(self) -> str:
        """Return the first lines of its output, those of its start."""
        with contextlib.suppress(OSError), self.log.open("rb") as stream:
            return stream.read(_BEGINNING_BYTES).decode("utf-8", "replace")
        return ""

    def resident_bytes(self) -> int:
        """Return the resident memory of the process and its descendants."""
        return sum(_resident(process) for process in self._tree())

    def busy_s(self) -> float:
        """Return the CPU time of the process and of all that it started so far."""
        return trees_s((self._process.pid,))

    def end(self, grace_s: float) -> None:
        """Send SIGTERM to the group, and after `grace_s` SIGKILL to the group and all its own.

        Then run what ends the processes that are none of its own (a container's). May be called
        again.
        """
        if self._process.poll() is None:
            self._signal_and_wait(signal.SIGTERM, grace_s)
        at_end, self._at_end = self._at_end, ()
        if at_end:
            _run_quietly(at_end)
        self._signal_and_wait(signal.SIGKILL, _REAP_S)
        kill_marked(self._token)

    def _signal_and_wait(self, number: signal.Signals, timeout_s: float) -> None:
        self._signal(number)
        self._wait(timeout_s)

    def _wait(self, timeout_s: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=timeout_s)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        return []


def _run_quietly(command: Sequence[str]) -> None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(  # noqa: S603 - the container program of the user
            command, capture_output=True, timeout=_END_S, check=False
        )


def _start(command: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with os.fdopen(os.open(log, flags, 0o600), "wb") as output:
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


def _cause_of(code: int) -> str:
    """Return what a process ended by, from its return code."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _size_of(file: Path) -> int:
    """Return the bytes of a file; 0 where it is not there."""
    return file.stat().st_size if file.exists() else 0


def _last_lines(file: Path, size: int) -> list[str]:
    """Return the last lines of a file of `size` bytes, without the escapes of a terminal."""
    lines = _end_of(file, size).decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    return [_printable(line) for line in lines]


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() or char == "\t" else UNPRINTABLE for char in line)


def _end_of(file: Path, size: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(max(0, size - _TAIL_BYTES))
        return stream.read()


def log_file(name: str) -> Path:
    """Return where a server's output goes: beside the worker's own log, where that is a file."""
    return _log_folder() / f"{_safe_name(name)}-{os.getpid()}-{time.time_ns() % 10**9}.log"


def _safe_name(name: str) -> str:
    """Return a name with '-' in place of what may not stand in a file's name."""
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in name)


def _log_folder() -> Path:
    own_log = _own_log()
    if own_log.is_file():
        return own_log.parent
    return Path(tempfile.mkdtemp(prefix="llmperf-server-"))


def _own_log() -> Path:
    """Return where this process writes its errors; an empty path where that is not known."""
    try:
        return Path("/proc/self/fd/2").readlink()
    except OSError:
        return Path()


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def find_program(name: str, option: str, variable: str) -> str:
    """Return the executable.

    It is the one that the option names, or the environment, or that stands beside this interpreter
    or on the PATH. Raises UsageError where there is none.
    """
    if option:
        return _runnable(option, "option 'program'")
    from_environment = os.environ.get(variable, "")
    if from_environment:
        return _runnable(from_environment, f"${variable}")
    beside = Path(sys.executable).parent / name
    program = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if program is None:
        raise UsageError(
            f"the server program {name!r} is not installed: not beside {sys.executable}, "
            f"not on the PATH. Name it by option 'program', or by ${variable}.",
        )
    return program


def _runnable(program: str, origin: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise UsageError(f"{origin} = {program!r}: that cannot be run.")
    return path


def _resident(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0
