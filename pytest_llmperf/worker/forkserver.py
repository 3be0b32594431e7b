"""`python -m pytest_llmperf.worker.forkserver --fd N`: imports engines, and forks workers.

Importing torch and transformers takes most of a worker's start. The server does it once, opens no
device, starts no thread, and each worker is a fork of it: with a process group, a socket, a log, an
environment and a token of its own. What the server holds is looked at in the moment of each fork;
where it holds a device or a thread, it refuses.

A worker says at its end what it had to import besides. The server imports that, too, before it
forks the next one, as far as it belongs to packages that are known to open nothing when imported.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import json
import os
import re
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from pytest_llmperf.processes import TOKEN, keep_to_cores, kill_group, lead_own_group
from pytest_llmperf.wire.forking import (
    MAX_PACKET_BYTES,
    REQUESTS,
    Answer,
    AskStatus,
    Fork,
    Forked,
    Refused,
    Status,
)
from pytest_llmperf.worker import blas, process_environment
from pytest_llmperf.worker.__main__ import work

LEARNABLE = frozenset(
    {
        "accelerate",
        "aiohttp",
        "jinja2",
        "markupsafe",
        "mpmath",
        "networkx",
        "numpy",
        "peft",
        "pytest_llmperf",
        "regex",
        "safetensors",
        "sympy",
        "tokenizers",
        "torch",
        "transformers",
        "triton",
        *sys.stdlib_module_names,
    }
)
"""Packages of which a server imports what its workers needed. Others may open a device then."""

_DEVICES = re.compile(r"^/dev/(nvidia\d|nvidia-uvm|kfd|dri/|accel|davinci)")
_OUTPUTS = (1, 2)


class ForkServer:
    """Answers one request at a time. `serve` returns in a worker, and when the session has ended.

    `learned_from` and `learned_by` are the two ends of the packets by which workers say what they
    imported.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._learned_from, self._learned_by = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._learned_from.setblocking(False)
        self._has_learned = False
        self._tokens: dict[int, str] = {}

    def serve(self) -> Worker | None:
        """Return the worker that this process has become by a fork, or None at the end."""
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._control, MAX_PACKET_BYTES, 2)
            if not data:
                self._end()
                return None
            request = REQUESTS.decode(data)
            if isinstance(request, AskStatus):
                self._answer(self._status(request))
            elif (worker := self._fork(request, descriptors)) is not None:
                return worker

    def _answer(self, answer: Answer) -> None:
        self._control.send(msgspec.json.encode(answer))

    def _fork(self, request: Fork, descriptors: list[int]) -> Worker | None:
        """Return the worker in the worker's process, None in the server's."""
        reason = self._import(request.engine) or held()
        if reason:
            self._answer(Refused(reason=reason, learned=self._has_learned))
        elif (pid := os.fork()) == 0:
            self._control.close()
            self._learned_from.close()
            return Worker(request, descriptors, self._learned_by)
        else:
            self._tokens[pid] = request.token
            self._answer(Forked(pid=pid))
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _import(self, engine: str) -> str:
        """Import an engine and what was learned; return why that cannot be done, or nothing."""
        # The table of engines, and all that it names: only where it is asked for.
        from pytest_llmperf import engines  # noqa: PLC0415

        n_modules = len(sys.modules)
        try:
            engines.engine(engine).load()
        except Exception as error:  # noqa: BLE001 - the worker meets it again, and says it in full
            return f"the engine cannot be imported before the fork ({type(error).__name__})"
        self._learn()
        if len(sys.modules) > n_modules:
            # What is here now stays: no collection in a worker has to copy its pages.
            gc.collect()
            gc.freeze()
        return ""

    def _learn(self) -> None:
        """Import what workers have needed since the last fork."""
        with suppress(BlockingIOError):
            while True:
                for name in json.loads(self._learned_from.recv(MAX_PACKET_BYTES)):
                    self._has_learned |= _import_learned(name)

    def _status(self, request: AskStatus) -> Status:
        options = os.WEXITED | os.WNOHANG | (0 if request.reap else os.WNOWAIT)
        ended = None
        with suppress(ChildProcessError):
            ended = os.waitid(os.P_PID, request.pid, options)
        if ended is None:
            return Status(exit_code=None)
        if request.reap:
            self._tokens.pop(request.pid, None)
        is_exit = ended.si_code == os.CLD_EXITED
        return Status(exit_code=ended.si_status if is_exit else -ended.si_status)

    def _end(self) -> None:
        """Kill the workers that were not reaped: their session is gone."""
        for pid, token in self._tokens.items():
            kill_group(pid, token)


class Worker:
    """What a fork needs to become a worker."""

    def __init__(self, request: Fork, descriptors: list[int], learned_by: socket.socket) -> None:
        self._request = request
        self._socket, self._log = descriptors
        self._learned_by = learned_by
        self._modules = frozenset(sys.modules)

    def run(self) -> None:
        """Leave everything of the server's that is not code, and serve commands until the end."""
        os.setsid()
        for output in _OUTPUTS:
            os.dup2(self._log, output)
        os.close(self._log)
        process_environment.replace(
            {**self._request.environment, TOKEN: self._request.token}, in_place=(TOKEN,)
        )
        blas.restore_threads()
        _draw_new_seeds()
        work(self._socket, rank=self._request.rank)
        self._tell_modules()
        _exit()

    def _tell_modules(self) -> None:
        """Say what this worker had to import; nobody need listen."""
        names = [name for name in sys.modules if name not in self._modules and _learnable(name)]
        with suppress(OSError):
            self._learned_by.setblocking(False)
            self._learned_by.send(json.dumps(names).encode())


def held() -> str:
    """Return what this process holds that a fork must not have, in words; nothing if it is fit."""
    threads = list(Path("/proc/self/task").iterdir())
    if len(threads) > 1:
        return f"the fork server has {len(threads)} threads after its imports"
    devices = opened_devices()
    if devices:
        return f"the fork server has opened {', '.join(devices)} by its imports"
    return ""


def opened_devices() -> list[str]:
    """Return the device files of accelerators that this process has open."""
    return sorted({path for path in _open_paths() if _DEVICES.match(path)})


def _open_paths() -> list[str]:
    """Return the files that this process has open."""
    paths = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            paths.append(str(descriptor.readlink()))
    return paths


def _learnable(name: str) -> bool:
    return name.partition(".")[0] in LEARNABLE


def _import_learned(name: str) -> bool:
    """Import a module, and return whether it was new. One that cannot be is a worker's own."""
    if name in sys.modules or not _learnable(name):
        return False
    try:
        importlib.import_module(name)
    except BaseException:  # noqa: BLE001 - a name that is no module, or one that needs a worker
        return False
    return True


def _draw_new_seeds() -> None:
    """Seed numpy's generator, which would be the same in each fork; Python's own sees to itself."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def _exit() -> None:
    """End this process as multiprocessing ends its forks: all is called that waits for an exit.

    The interpreter is not taken down, which would copy most pages that a worker shares with the
    server.
    """
    atexit._run_exitfuncs()  # noqa: SLF001 - multiprocessing does the same
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def main(argv: list[str] | None = None) -> None:
    """Serve the session's requests on the inherited socket."""
    parser = argparse.ArgumentParser(prog="python -m pytest_llmperf.worker.forkserver")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the session")
    options = parser.parse_args(argv)
    os.set_inheritable(options.fd, False)
    lead_own_group()
    keep_to_cores()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = ForkServer(socket.socket(fileno=options.fd)).serve()
    if worker is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        worker.run()


if __name__ == "__main__":
    main()
