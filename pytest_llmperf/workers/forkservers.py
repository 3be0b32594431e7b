"""The fork servers of this process: one for each interpreter and environment that asks for it.

A worker that cannot be forked is started as a program of its own, and the record says why.
"""

from __future__ import annotations

import atexit
import os
import select
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from pytest_llmperf.engines import rendezvous
from pytest_llmperf.processes import TOKEN, kill_group, process_state
from pytest_llmperf.wire.forking import (
    ANSWERS,
    MAX_PACKET_BYTES,
    Answer,
    AskStatus,
    Fork,
    Forked,
    Refused,
    Request,
    Status,
)
from pytest_llmperf.workers import guardian

MAX_SERVERS = 4
"""So many servers are kept by a process; the one that was not used for longest makes way."""

OF_ONE_WORKER = frozenset(
    {
        rendezvous.SECRET,
        TOKEN,
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "CUDA_VISIBLE_DEVICES",
        "PYTEST_CURRENT_TEST",
    }
)
"""Variables that nothing reads while it is imported: workers of one server may differ in them."""

_UNTIL_FORKED = {
    "OPENBLAS_NUM_THREADS": "1",  # numpy
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
"""What keeps imports from starting threads and opening devices. Workers do not have it."""

_ASK_S = 5.0
_END_S = 5.0
_POLL_S = 0.2
_STOPPED = frozenset("TtZ")


class CannotForkError(Exception):
    """No worker could be forked; the text says why."""


@dataclass(frozen=True)
class _Key:
    """What has to be equal for two workers to be forks of one server."""

    python: str
    directory: str
    cores: frozenset[int]
    sees_gpus: bool
    environment: frozenset[tuple[str, str]]


class ForkServer:
    """A started server. One thread at a time asks it; after a failure nobody does."""

    def __init__(self, python: str, environment: Mapping[str, str]) -> None:
        self._asking = threading.Lock()
        self._token = f"{guardian.token()}{uuid.uuid4().hex}"
        self.failure = ""
        self._socket, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with server_end:
                self._process = _start(python, environment, self._token, server_end.fileno())
        except BaseException:
            self._socket.close()
            raise

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it runs, and can reap its workers."""
        return self._process.poll() is None

    def fork(self, request: Fork, descriptors: tuple[int, int], deadline_s: float) -> int:
        """Return the process id of a new worker, which has inherited the descriptors.

        Raises:
            CannotForkError: the server refused, has ended, or did not answer in time.
        """
        answer = self._ask(request, descriptors, deadline_s)
        if isinstance(answer, Forked):
            return answer.pid
        if isinstance(answer, Refused):
            raise _RefusedError(answer.reason, learned=answer.learned)
        raise CannotForkError(self.failure)

    def exit_code(self, pid: int, *, reap: bool) -> int | None:
        """Return how a worker ended. None while it runs, and where nobody can say it."""
        answer = self._ask(AskStatus(pid=pid, reap=reap), (), _ASK_S)
        return answer.exit_code if isinstance(answer, Status) else None

    def end(self) -> None:
        """End it. Workers that still run are killed by it."""
        self._socket.close()
        self.failure = self.failure or "the fork server was ended"
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_END_S)
        if self._process.poll() is None:
            kill_group(self.pid, self._token)
            self._process.wait()

    def _abandon(self, failure: str) -> None:
        """Kill it. Its workers run on, and the system reaps them."""
        self.failure = failure
        self._socket.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_END_S)

    def _ask(
        self, request: Request, descriptors: tuple[int, ...], deadline_s: float
    ) -> Answer | None:
        """Return the answer; None when there is none, and `failure` says why: it is killed."""
        with self._asking:
            if self.failure:
                return None
            try:
                socket.send_fds(self._socket, [msgspec.json.encode(request)], descriptors)
                self._wait_for_answer(deadline_s)
                data = self._socket.recv(MAX_PACKET_BYTES)
                if data:
                    return ANSWERS.decode(data)
            except (OSError, TimeoutError, msgspec.MsgspecError) as error:
                self._abandon(f"the fork server failed ({error})")
            else:
                self._abandon(f"the fork server has ended ({self._exit_text()})")
            return None

    def _wait_for_answer(self, deadline_s: float) -> None:
        """Return when an answer, or the end of the stream, has come. Raises TimeoutError."""
        end_s = time.monotonic() + deadline_s
        while not select.select([self._socket], [], [], _POLL_S)[0]:
            state = process_state(self.pid)
            if state in _STOPPED or time.monotonic() > end_s:
                raise TimeoutError(f"no answer in {deadline_s:g} s; its state is {state}")

    def _exit_text(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            return f"exit code {self._process.wait(timeout=_ASK_S)}"
        return "it still runs"


def _start(
    python: str, environment: Mapping[str, str], token: str, fd: int
) -> subprocess.Popen[bytes]:
    """Start the program of a server, which inherits its end of the socket. Raises OSError."""
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [python, "-m", "pytest_llmperf.worker.forkserver", "--fd", str(fd)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**environment, TOKEN: token, "PYTHONUNBUFFERED": "1"},
        pass_fds=(fd,),
        start_new_session=True,
    )


class _RefusedError(CannotForkError):
    """The server lives, and refused."""

    def __init__(self, reason: str, *, learned: bool) -> None:
        super().__init__(reason)
        self.learned = learned


@dataclass
class _Servers:
    """The servers of one process. A fork of the process has its own."""

    owner_pid: int = field(default_factory=os.getpid)
    by_key: dict[_Key, ForkServer] = field(default_factory=dict)
    retired: list[ForkServer] = field(default_factory=list)
    unfit: dict[tuple[_Key, str], str] = field(default_factory=dict)
    unlearned: set[_Key] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


_current = [_Servers()]


def fork(
    *,
    python: str,
    engine: str,
    rank: int,
    token: str,
    environment: Mapping[str, str],
    descriptors: tuple[int, int],
    deadline_s: float,
) -> tuple[int, ForkServer]:
    """Fork a worker of an engine, from a new server where none has these imports and environment.

    Args:
        python: the interpreter.
        engine: the name of the engine, which the server imports.
        rank: of the worker.
        token: marks the worker's processes.
        environment: all variables that the worker has.
        descriptors: the worker's end of its socket, and its log.
        deadline_s: for the server to come up, import the engine and fork.

    Returns:
        The process id, and the server that reaps it.

    Raises:
        CannotForkError: it cannot be forked on this system, the engine cannot be imported before a
            fork, or the server failed. The next call with this interpreter, engine and environment
            raises the same at once.
    """
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        raise CannotForkError(f"workers are forked on Linux, this is {sys.platform}")
    servers = _of_this_process()
    key = _key(python, environment)
    request = Fork(
        engine=engine,
        rank=rank,
        token=token,
        environment=_of_worker(environment),
        learns=key not in servers.unlearned,
    )
    with servers.lock:
        if (key, engine) in servers.unfit:
            raise CannotForkError(servers.unfit[key, engine])
        server, pid = _fork(servers, key, environment, request, descriptors, deadline_s)
    return pid, server


def pids() -> tuple[int, ...]:
    """Return the process ids of the servers that may be asked for workers."""
    return tuple(server.pid for server in _of_this_process().by_key.values())


def end_all() -> None:
    """End the servers of this process, and the workers that still run."""
    servers = _of_this_process()
    ending = [*servers.by_key.values(), *servers.retired]
    servers.by_key.clear()
    servers.retired.clear()
    for server in ending:
        server.end()


def _of_this_process() -> _Servers:
    if _current[-1].owner_pid != os.getpid():
        _current.append(_Servers())
    return _current[-1]


def _fork(
    servers: _Servers,
    key: _Key,
    environment: Mapping[str, str],
    request: Fork,
    descriptors: tuple[int, int],
    deadline_s: float,
) -> tuple[ForkServer, int]:
    """Fork; and once more, from a new server, where one had learned too much."""
    server, is_new = _server(servers, key, environment)
    try:
        return server, server.fork(request, descriptors, deadline_s)
    except _RefusedError as error:
        _retire(servers, key)
        if not error.learned:
            servers.unfit[key, request.engine] = str(error)
            raise
    except CannotForkError as error:
        servers.by_key.pop(key)
        if is_new:
            servers.unfit[key, request.engine] = str(error)
        raise
    servers.unlearned.add(key)
    server, _ = _server(servers, key, environment)
    request = msgspec.structs.replace(request, learns=False)
    return server, server.fork(request, descriptors, deadline_s)


def _server(
    servers: _Servers, key: _Key, environment: Mapping[str, str]
) -> tuple[ForkServer, bool]:
    """Return the server of a key, and whether it was made now."""
    known = servers.by_key.pop(key, None)
    if known is not None:
        servers.by_key[key] = known  # as the one that was used last
        return known, False
    while len(servers.by_key) >= MAX_SERVERS:
        _retire(servers, next(iter(servers.by_key)))
    common = {name: value for name, value in environment.items() if name not in OF_ONE_WORKER}
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        common["CUDA_VISIBLE_DEVICES"] = visible
    try:
        servers.by_key[key] = ForkServer(key.python, {**_UNTIL_FORKED, **common})
    except OSError as error:
        raise CannotForkError(f"the interpreter cannot be run: {error}") from error
    return servers.by_key[key], True


def _retire(servers: _Servers, key: _Key) -> None:
    """Ask a server for no more workers. It lives on to reap those that still run."""
    servers.retired.append(servers.by_key.pop(key))


def _key(python: str, environment: Mapping[str, str]) -> _Key:
    common = {item for item in environment.items() if item[0] not in OF_ONE_WORKER}
    return _Key(
        python=python,
        directory=os.getcwd(),  # noqa: PTH109 - `-m` puts it first in the path
        cores=frozenset(os.sched_getaffinity(0)),
        sees_gpus=environment.get("CUDA_VISIBLE_DEVICES") != "",
        environment=frozenset(common),
    )


def _of_worker(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables of one worker: its own, and those of the server's that it lacks."""
    own: dict[str, str | None] = {
        name: environment.get(name) for name in sorted(OF_ONE_WORKER - {TOKEN})
    }
    absent = {name: None for name in _UNTIL_FORKED if name not in environment}
    return {**own, **absent}


@atexit.register
def _end_at_exit() -> None:
    if _current[-1].owner_pid == os.getpid():
        end_all()
