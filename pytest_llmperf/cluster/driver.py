"""`python -m pytest_llmperf.cluster.driver --address A --sockets FD --fd FD`: holds a session's connection to Ray.

It reserves bundles (a placement group), puts a `RankHost` in each, has them start the ranks, and carries bytes between the
session's sockets and theirs. It ends with its socket; Ray then ends the job, with the actors and what runs in them.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, cast

import msgspec

from pytest_llmperf.cluster.messages import (
    Answer,
    Bundle,
    Done,
    Ended,
    Exit,
    FileSize,
    GiveBack,
    Kill,
    Launch,
    Launched,
    Look,
    Node,
    Place,
    ReadFile,
    ReadLog,
    Refused,
    Request,
    Seen,
    Size,
    Stacks,
    Take,
    Taken,
    Text,
    WriteFile,
)
from pytest_llmperf.cluster.node import RankHost, decoded_gpus, gpus_here
from pytest_llmperf.errors import DeviceBusy, LlmperfError, UsageError, WorkerError
from pytest_llmperf.processes import die_with_parent, lead_own_group
from pytest_llmperf.settings.cluster_address import AUTO, host_and_port
from pytest_llmperf.wire.frames import Wire, WireClosed
from pytest_llmperf.worker.failures import failure

START_S = 120.0
"""For actors to come up; Ray starts a Python process for each."""

CALL_S = 60.0
"""For a short call of an actor."""

_CONNECT_S = 5.0
_READ_S = 20.0
_CHUNK_BYTES = 2**20
_CALLS_AT_ONCE = 32


class Driver:
    """What this process holds of the cluster: the bundles, and the actor in each, in rank order."""

    def __init__(self, ray: Any, address: str, sockets: socket.socket) -> None:
        self._ray = ray
        self._groups, self._strategies = (
            import_module(f"ray.util.{n}") for n in ("placement_group", "scheduling_strategies")
        )
        self._address = address
        self._sockets = sockets
        self._group: Any = None
        self._hosts: tuple[Any, ...] = ()
        self._places: tuple[Place, ...] = ()
        self._models: list[str] = []

    def handle(self, request: Request) -> Answer:
        """Do one request. Raises what Ray raises, and our own errors."""
        answer: Answer
        match request:
            case Look():
                answer = Seen(nodes=tuple(self._nodes()), ray=str(self._ray.__version__))
            case Take():
                answer = self._take(request)
            case Launch():
                answer = self._launch(request)
            case GiveBack():
                answer = self.give_back()
            case Kill():
                answer = self._kill(request.model, self._hosts[request.rank : request.rank + 1])
            case _:
                answer = self._ask_rank(self._hosts[request.rank], request)
        return answer

    def _ask_rank(
        self, host: Any, request: Exit | Stacks | ReadLog | FileSize | ReadFile | WriteFile
    ) -> Answer:
        answer: Answer
        match request:
            case Exit():
                found = self._get(
                    host.exit.remote(request.model, request.wait_s), CALL_S + request.wait_s
                )
                answer = msgspec.msgpack.decode(found, type=Ended)
            case Stacks():
                answer = Text(text=self._get(host.stacks.remote(request.model), CALL_S).encode())
            case ReadLog():
                answer = Text(text=self._get(host.log.remote(request.model, request.start), CALL_S))
            case FileSize():
                answer = Size(size=self._get(host.file_size.remote(request.path), CALL_S))
            case ReadFile():
                answer = Text(
                    text=self._get(host.read_file.remote(request.path, request.start), CALL_S)
                )
            case WriteFile():
                self._get(host.write_file.remote(request.path, request.start, request.data), CALL_S)
                answer = Done()
        return answer

    def give_back(self) -> Answer:
        """End what runs in the bundles, and give them back. May be called again."""
        for model in self._models:
            self._kill(model, self._hosts)
        for host in self._hosts:
            self._ray.kill(host)
        group, self._group, self._hosts, self._places, self._models = self._group, None, (), (), []
        if group is not None:
            self._groups.remove_placement_group(group)
        return Done()

    def _nodes(self) -> Iterator[Node]:
        for row in self._ray.nodes():
            if row["Alive"]:
                lent = row["Resources"]
                yield Node(
                    id=row["NodeID"],
                    address=row["NodeManagerAddress"],
                    name=row["NodeManagerHostname"],
                    cpus=lent.get("CPU", 0),
                    gpus=lent.get("GPU", 0),
                    devices=self._gpus_of(row["NodeID"]) if lent.get("GPU", 0) >= 1 else (),
                )

    def _gpus_of(self, node: str) -> Any:
        on_it = self._strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        look = self._ray.remote(gpus_here).options(num_cpus=0, scheduling_strategy=on_it)
        return decoded_gpus(self._get(look.remote(), START_S))

    def _take(self, wanted: Take) -> Answer:
        self.give_back()
        self._group = self._groups.placement_group(
            [_resources(bundle) for bundle in wanted.bundles],
            strategy="PACK" if wanted.together else "SPREAD",
        )
        if not self._group.wait(math.ceil(wanted.wait_s)):
            free = self._free()
            self.give_back()
            raise DeviceBusy(
                f"--llmperf-cluster={self._address!r}: {_in_words(wanted.bundles)} were not free together within "
                f"{wanted.wait_s:g} s; the cluster has {free} free now. 'ray status' says who holds the rest. Let it finish, or "
                "wait longer with --llmperf-wait.",
            )
        self._hosts = self._made(wanted.bundles)
        self._places = tuple(
            msgspec.msgpack.decode(found, type=Place)
            for found in self._get([h.place.remote() for h in self._hosts], START_S)
        )
        return Taken(places=self._places)

    def _made(self, bundles: Sequence[Bundle]) -> tuple[Any, ...]:
        """An actor in each bundle. Ranks that follow each other share a host where they can."""
        table = self._groups.placement_group_table(self._group)
        node_of = {int(index): node for index, node in table["bundles_to_node_id"].items()}
        addresses = {row["NodeID"]: row["NodeManagerAddress"] for row in self._ray.nodes()}
        order = sorted(node_of, key=lambda index: (list(addresses).index(node_of[index]), index))
        strategy = self._strategies.PlacementGroupSchedulingStrategy
        actor = self._ray.remote(RankHost)
        return tuple(
            actor.options(
                num_cpus=bundles[index].cpus,
                num_gpus=bundles[index].gpus,
                max_concurrency=_CALLS_AT_ONCE,
                scheduling_strategy=strategy(self._group, placement_group_bundle_index=index),
            ).remote(node_of[index], addresses[node_of[index]], bool(bundles[index].gpus))
            for index in order
        )

    def _free(self) -> str:
        free = self._ray.available_resources()
        return f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs"

    def _launch(self, wanted: Launch) -> Answer:
        _, fds, _, _ = socket.recv_fds(self._sockets, 1, wanted.ranks)
        streams = [socket.socket(fileno=fd) for fd in fds]
        hosts = self._hosts[: wanted.ranks]
        self._models.append(wanted.model)
        meet = ""
        if wanted.ranks > 1:
            meet = f"{self._places[0].address}:{self._get(hosts[0].free_port.remote(), CALL_S)}"
        order = msgspec.msgpack.encode(wanted)
        try:
            pids = self._get(
                [host.launch.remote(order, rank, meet) for rank, host in enumerate(hosts)],
                wanted.deadline_s,
            )
        except BaseException as error:
            for stream in streams:
                stream.close()
            self._kill(wanted.model, hosts)
            # Ray raises its own kind of the host's error.
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                named = f"the interpreter {wanted.python or 'that Ray runs with'}"
                raise UsageError(
                    f"no worker could be started with {named} on a host: {_last_line(error)}."
                ) from error
            raise
        for stream, host in zip(streams, hosts, strict=True):
            for carry in (self._carry_down, self._carry_up):
                threading.Thread(
                    target=carry, args=(stream, host, wanted.model), daemon=True
                ).start()
        return Launched(pids=tuple(pids), meet=meet)

    def _carry_down(self, stream: socket.socket, host: Any, model: str) -> None:
        """From the session to the rank, until the session closes its end."""
        with contextlib.suppress(OSError, self._ray.exceptions.RayError):
            while data := stream.recv(_CHUNK_BYTES):
                self._get(host.write.remote(model, data), None)

    def _carry_up(self, stream: socket.socket, host: Any, model: str) -> None:
        """From the rank to the session, until the rank closes its end or its host is gone.

        Then the session's end closes.
        """
        with contextlib.suppress(OSError, self._ray.exceptions.RayError):
            while (data := self._get(host.read.remote(model, _READ_S), None)) != b"":
                stream.sendall(data or b"")
        with contextlib.suppress(OSError):
            stream.shutdown(socket.SHUT_RDWR)
        stream.close()

    def _kill(self, model: str, hosts: Sequence[Any]) -> Answer:
        for host in hosts:
            # An actor that is gone has taken its rank along.
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._get(host.kill.remote(model), CALL_S)
        return Done()

    def _get(self, found: Any, timeout_s: float | None) -> Any:
        return self._ray.get(found, timeout=timeout_s)


def connected(address: str) -> Any:
    """Ray, connected. Raises UsageError with what was tried and what to do."""
    # A session that is gone does not come back.
    os.environ.setdefault("RAY_CLIENT_RECONNECT_GRACE_PERIOD", "0")
    ray = import_module("ray")
    where = host_and_port(address)
    if where is not None:
        _require_open(address, where)
    try:
        ray.init(address=address, namespace="pytest-llmperf", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"--llmperf-cluster={address!r}: {_first_line(error)}. {_advice(address)}"
        ) from error
    return ray


def serve(wire: Wire[Request], address: str, sockets: socket.socket) -> None:
    """Connect, and answer requests until the session closes its end."""
    driver: Driver | None = None
    with contextlib.suppress(WireClosed):
        while True:
            request = wire.receive(timeout_s=None)
            if request is None:
                continue
            try:
                driver = driver or Driver(connected(address), address, sockets)
                answer = driver.handle(request)
            # The boundary of the process: all errors travel.
            except Exception as error:  # noqa: BLE001
                answer = Refused(failure=failure(_ours(error, address)))
            wire.send(answer, timeout_s=None)
    if driver is not None:
        _leave(driver)


def main(argv: list[str] | None = None) -> None:
    """Serve the inherited socket."""
    options = _parser().parse_args(argv)
    lead_own_group()
    if options.die_with_parent:
        die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the session decides what an interrupt ends
    os.set_inheritable(options.fd, False)
    os.set_inheritable(options.sockets, False)
    requests = cast("Callable[[], Any]", lambda: msgspec.msgpack.Decoder(Request))
    wire: Wire[Request] = Wire(socket.socket(fileno=options.fd), requests())
    serve(wire, options.address, socket.socket(fileno=options.sockets))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_llmperf.cluster.driver", description=__doc__
    )
    parser.add_argument("--address", required=True, help="'auto' or 'ray://HOST:PORT'")
    parser.add_argument(
        "--sockets",
        type=int,
        required=True,
        help="inherited socket over which the ranks' sockets come",
    )
    parser.add_argument(
        "--fd", type=int, required=True, help="inherited stream socket to the session"
    )
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world-size", type=int, default=1)
    parser.add_argument(
        "--die-with-parent",
        action="store_true",
        help="let the kernel kill this process with its parent thread",
    )
    return parser


def _leave(driver: Driver) -> None:
    driver.give_back()
    import_module("ray").shutdown()


def _require_open(address: str, where: tuple[str, int]) -> None:
    try:
        socket.create_connection(where, timeout=_CONNECT_S).close()
    except OSError as error:
        raise UsageError(
            f"--llmperf-cluster={address!r}: nothing answers there ({error}). {_advice(address)}"
        ) from error


def _advice(address: str) -> str:
    if address == AUTO:
        return (
            "'auto' takes the cluster that this machine is a host of: start it with 'ray start --head', join one with "
            "'ray start --address=HOST:6379', set RAY_ADDRESS, or name a client server with 'ray://HOST:10001'."
        )
    return "'ray start --head' on that host opens its client server, at port 10001 unless told otherwise ('ray status' there)."


def _ours(error: Exception, address: str) -> Exception:
    """What Ray raises where a host cannot run our part, or is gone, as errors that say what to do."""
    if isinstance(error, LlmperfError):
        return error
    text = str(error)
    if "pytest_llmperf" in text and ("ModuleNotFoundError" in text or "No module named" in text):
        return UsageError(
            f"--llmperf-cluster={address!r}: a host of the cluster has no pytest-llmperf in the Python that Ray runs with. "
            f"Install the same version there, with the engine's packages. Ray says: {_first_line(error)}.",
        )
    return WorkerError(f"--llmperf-cluster={address!r}: {type(error).__name__}: {text}")


def _resources(bundle: Bundle) -> dict[str, int]:
    return {name: n for name, n in (("CPU", bundle.cpus), ("GPU", bundle.gpus)) if n}


def _in_words(bundles: Sequence[Bundle]) -> str:
    gpus = f" and {bundles[0].gpus} GPU" if bundles[0].gpus else ""
    return f"{len(bundles)} x {bundles[0].cpus} CPUs{gpus}"


def _last_line(error: BaseException) -> str:
    """Of what was raised on another host Ray says the traceback first."""
    return str(error).rstrip().rpartition("\n")[2]


def _first_line(error: BaseException) -> str:
    return next(
        (line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()),
        type(error).__name__,
    )


if __name__ == "__main__":
    main()
