"""On a host of the cluster: holds one bundle, and starts and watches the ranks that run in it.

A Ray actor is made of this class. What goes through its methods are bytes, texts and numbers: the
workers' own messages, as they are, or one of `messages`. It starts the worker program as a session
does on its own host.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import select
import socket
import sys
import tempfile
from pathlib import Path

import msgspec
import psutil

from pytest_llmperf.cluster.files import CHUNK_BYTES
from pytest_llmperf.cluster.messages import Ended, Launch, Slot
from pytest_llmperf.devices import drivers
from pytest_llmperf.devices.host import host_facts
from pytest_llmperf.devices.inventory import Gpu
from pytest_llmperf.workers import guardian
from pytest_llmperf.workers.process import WorkerProcess, rank_environment

_READ_BYTES = 2**20
_SEND_S = 600.0
_OF_RAY = ("RAY_",)
"""Variables of Ray's own processes that a worker does not inherit."""


class RankHost:
    """One bundle.

    Its methods are called from several threads, those of one rank's stream each from one.
    """

    def __init__(self, node: str, address: str, on_gpus: bool) -> None:
        self._node = node
        self._address = address
        self._gpus = _lent_gpus() if on_gpus else ()
        self._workers: dict[str, WorkerProcess] = {}
        self._sockets: dict[str, socket.socket] = {}
        guardian.detach()
        self._logs = Path(tempfile.mkdtemp(prefix="llmperf-ranks-"))

    def slot(self) -> bytes:
        """Return an encoded `Slot`: this host, and what the bundle has of it."""
        facts = host_facts()
        slot = Slot(
            node=self._node,
            address=self._address,
            name=socket.gethostname(),
            pid=os.getpid(),
            version=importlib.metadata.version("pytest-llmperf"),
            gpus=self._gpus,
            memory_bytes=int(facts["memory_limit_bytes"] or 0),
            facts={**facts, "python": platform.python_version()},
        )
        return msgspec.msgpack.encode(slot)

    def free_port(self) -> int:
        """Return a TCP port of this host's address that nothing listens on now."""
        with socket.socket(_family(self._address)) as probe:
            probe.bind((self._address, 0))
            return int(probe.getsockname()[1])

    def launch(self, order: bytes, rank: int, meet: str) -> int:
        """Start one rank of a `Launch` and return its process id.

        Raises OSError for an interpreter that cannot be run.
        """
        launch = msgspec.msgpack.decode(order, type=Launch)
        worker = WorkerProcess.start(
            python=launch.python or sys.executable,
            rank=rank,
            world_size=launch.ranks,
            log=self._logs / f"{launch.model}-rank{rank}.log",
            env=environment(launch, rank, meet, self._address),
            program=launch.program,
            cwd=_folder_or_none(launch.cwd),
        )
        self._workers[launch.model] = worker
        self._sockets[launch.model] = socket.socket(fileno=os.dup(worker.wire.fileno()))
        return worker.pid

    def write(self, model: str, data: bytes) -> None:
        """Pass bytes to the rank. Those for one that is gone are lost, as in its socket."""
        worker = self._workers.get(model)
        if worker is not None:
            with contextlib.suppress(OSError):  # TimeoutError is one
                worker.wire.send_frame(data, timeout_s=_SEND_S)

    def read(self, model: str, wait_s: float) -> bytes | None:
        """Return what the rank has sent, after waiting for some.

        None means that nothing came, b"" that it has closed its end.
        """
        stream = self._sockets.get(model)
        if stream is None:
            return b""
        try:
            readable, _, _ = select.select([stream], [], [], wait_s)
            return stream.recv(_READ_BYTES) if readable else None
        except (OSError, ValueError):  # the connection broke, or `kill` has closed it
            return b""

    def exit(self, model: str, wait_s: float) -> bytes:
        """Return an encoded `Ended`."""
        worker = self._workers[model]
        has_ended = worker.wait_exited(wait_s)
        code = worker.exit_code() if has_ended else None
        return msgspec.msgpack.encode(Ended(ended=has_ended, code=code))

    def stacks(self, model: str) -> str:
        """Return the stacks of the rank's threads, or why there are none."""
        worker = self._workers[model]
        worker.greeted = True
        return worker.stacks()

    def log(self, model: str, start: int) -> bytes:
        """Return the rank's output from this byte on, at most 16 MiB of it."""
        with self._workers[model].log.open("rb") as file:
            file.seek(start)
            return file.read(CHUNK_BYTES)

    def file_size(self, path: str) -> int:
        """See cluster.files.Remote."""
        return Path(path).stat().st_size if Path(path).exists() else -1

    def read_file(self, path: str, start: int) -> bytes:
        """See cluster.files.Remote."""
        with Path(path).open("rb") as file:
            file.seek(start)
            return file.read(CHUNK_BYTES)

    def write_file(self, path: str, start: int, data: bytes) -> None:
        """See cluster.files.Remote."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if data:
            with Path(path).open("r+b" if start else "wb") as file:
                file.seek(start)
                file.write(data)

    def kill(self, model: str) -> None:
        """End the rank and all that it started, and forget its output. May be called again."""
        worker, stream = self._workers.pop(model, None), self._sockets.pop(model, None)
        if worker is not None:
            worker.kill()
            worker.log.unlink(missing_ok=True)
        if stream is not None:
            stream.close()


def gpus_here() -> bytes:
    """Return the encoded GPUs of this host, whatever Ray shows of them to this process."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        os.environ.pop(name, None)
    return msgspec.msgpack.encode(drivers.inventory().gpus)


def decoded_gpus(data: bytes) -> tuple[Gpu, ...]:
    """Return what `gpus_here` encoded."""
    return msgspec.msgpack.decode(data, type=tuple[Gpu, ...])


def environment(launch: Launch, rank: int, meet: str, address: str) -> dict[str, str]:
    """Return the variables of one rank.

    They are this process's without Ray's own, the session's, and where the ranks meet. Each rank
    sees its own GPUs alone, so that it is the first and only one among those that share its
    devices.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(_OF_RAY)}
    base = own | launch.env
    host, _, port = meet.rpartition(":")
    env = rank_environment(rank=rank, ranks=launch.ranks, port=int(port or 0), base=base, host=host)
    if launch.ranks > 1:
        env |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        env = _interface_variables(address) | env
    return env


def _interface_variables(address: str) -> dict[str, str]:
    """Return the variables that have collectives use the interface of this host's address.

    The one that the host's name resolves to is often the loopback interface.
    """
    interface = interface_of(address)
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return dict.fromkeys(names, interface) if interface else {}


def interface_of(address: str) -> str:
    """Return the network interface of this host that has the address; "" for none."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(interface.address == address for interface in addresses):
            return str(name)
    return ""


def _folder_or_none(path: str) -> Path | None:
    return Path(path) if Path(path).is_dir() else None


def _lent_gpus() -> tuple[str, ...]:
    """Return the GPUs that Ray lends to this process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return tuple(filter(None, visible.split(",")))


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
