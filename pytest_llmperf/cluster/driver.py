"""A session's connection to Ray, in a process of its own.

`python -m pytest_llmperf.cluster.driver --address A --sockets FD --fd FD` reserves bundles (a
placement group), puts a `RankHost` in each, has them start the ranks, and carries bytes between the
session's sockets and theirs. It ends with its socket; Ray then ends the job, with the actors and
what runs in them.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, cast

import msgspec

from pytest_llmperf.cluster.connection import as_own_error, connected, last_line
from pytest_llmperf.cluster.messages import (
    Answer,
    Bundle,
    Done,
    Ended,
    Exit,
    FileSize,
    HostList,
    Kill,
    Launch,
    Launched,
    ListHosts,
    Node,
    ReadFile,
    ReadLog,
    Refused,
    Request,
    Reserve,
    Reserved,
    ReturnBundles,
    Size,
    Slot,
    Stacks,
    Text,
    WriteFile,
)
from pytest_llmperf.cluster.node import RankHost, decoded_gpus, gpus_here
from pytest_llmperf.cluster.streams import Carrier
from pytest_llmperf.errors import DeviceBusy, UsageError
from pytest_llmperf.processes import die_with_parent, lead_own_group
from pytest_llmperf.wire.frames import Wire, WireClosed
from pytest_llmperf.worker.failures import failure

START_S = 120.0
"""For actors to come up; Ray starts a Python process for each."""

CALL_S = 60.0
"""For a short call of an actor."""

_CALLS_AT_ONCE = 32


class Driver:
    """What this process holds of the cluster: the bundles, and the actor in each, in rank order."""

    def __init__(self, ray: Any, address: str, sockets: socket.socket) -> None:
        self._ray = ray
        self._groups = import_module("ray.util.placement_group")
        self._strategies = import_module("ray.util.scheduling_strategies")
        self._address = address
        self._sockets = sockets
        self._group: Any = None
        self._hosts: tuple[Any, ...] = ()
        self._slots: tuple[Slot, ...] = ()
        self._models: list[str] = []

    def handle(self, request: Request) -> Answer:
        """Do one request. Raises what Ray raises, and our own errors."""
        return _HANDLERS[type(request)](self, request)

    def list_hosts(self, _request: ListHosts) -> Answer:
        """Return the hosts that are alive."""
        return HostList(nodes=tuple(self._nodes()), ray=str(self._ray.__version__))

    def reserve(self, request: Reserve) -> Answer:
        """Give back what is held, and hold these bundles with an actor in each.

        Raises DeviceBusy when they are not free within the wait.
        """
        self.return_bundles()
        self._group = self._groups.placement_group(
            [_resources(bundle) for bundle in request.bundles],
            strategy="PACK" if request.together else "SPREAD",
        )
        if not self._group.wait(math.ceil(request.wait_s)):
            error = self._busy(request)
            self.return_bundles()
            raise error
        self._hosts = self._started_hosts(request.bundles)
        self._slots = self._slots_of_hosts()
        return Reserved(slots=self._slots)

    def launch(self, request: Launch) -> Answer:
        """Start the ranks of a model, whose sockets came along, and carry their bytes.

        Raises UsageError when the interpreter cannot be run.
        """
        streams = self._received_streams(request.ranks)
        hosts = self._hosts[: request.ranks]
        self._models.append(request.model)
        meet = self._meeting_address(request.ranks)
        try:
            pids = self._start_ranks(request, hosts, meet)
        except BaseException:
            for stream in streams:
                stream.close()
            self._kill_on(hosts, request.model)
            raise
        for stream, host in zip(streams, hosts, strict=True):
            Carrier(self._ray, stream, host, request.model).start()
        return Launched(pids=tuple(pids), meet=meet)

    def return_bundles(self, _request: ReturnBundles | None = None) -> Answer:
        """End what runs in the bundles, and give them back. May be called again."""
        for model in self._models:
            self._kill_on(self._hosts, model)
        for host in self._hosts:
            self._ray.kill(host)
        group, self._group = self._group, None
        self._hosts, self._slots, self._models = (), (), []
        if group is not None:
            self._groups.remove_placement_group(group)
        return Done()

    def kill(self, request: Kill) -> Answer:
        """End one rank, where its host is still held."""
        self._kill_on(self._hosts[request.rank : request.rank + 1], request.model)
        return Done()

    def exit(self, request: Exit) -> Answer:
        """Return how a rank ended, after waiting for it."""
        promise = self._hosts[request.rank].exit.remote(request.model, request.wait_s)
        return msgspec.msgpack.decode(self._get(promise, CALL_S + request.wait_s), type=Ended)

    def stacks(self, request: Stacks) -> Answer:
        """Return the stacks of a rank's threads."""
        promise = self._hosts[request.rank].stacks.remote(request.model)
        return Text(text=self._get(promise, CALL_S).encode())

    def read_log(self, request: ReadLog) -> Answer:
        """Return a part of a rank's output."""
        promise = self._hosts[request.rank].log.remote(request.model, request.start)
        return Text(text=self._get(promise, CALL_S))

    def file_size(self, request: FileSize) -> Answer:
        """Return the size of a file of a rank's host."""
        promise = self._hosts[request.rank].file_size.remote(request.path)
        return Size(size=self._get(promise, CALL_S))

    def read_file(self, request: ReadFile) -> Answer:
        """Return a part of a file of a rank's host."""
        promise = self._hosts[request.rank].read_file.remote(request.path, request.start)
        return Text(text=self._get(promise, CALL_S))

    def write_file(self, request: WriteFile) -> Answer:
        """Write a part of a file of a rank's host."""
        host = self._hosts[request.rank]
        self._get(host.write_file.remote(request.path, request.start, request.data), CALL_S)
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
        on_node = self._strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        look = self._ray.remote(gpus_here).options(num_cpus=0, scheduling_strategy=on_node)
        return decoded_gpus(self._get(look.remote(), START_S))

    def _slots_of_hosts(self) -> tuple[Slot, ...]:
        encoded_slots = self._get([host.slot.remote() for host in self._hosts], START_S)
        return tuple(msgspec.msgpack.decode(slot, type=Slot) for slot in encoded_slots)

    def _started_hosts(self, bundles: Sequence[Bundle]) -> tuple[Any, ...]:
        """Start an actor in each bundle.

        They are in an order in which ranks that follow each other share a host where they can.
        """
        node_of = self._node_of_bundles()
        addresses = {row["NodeID"]: row["NodeManagerAddress"] for row in self._ray.nodes()}
        places = {node: place for place, node in enumerate(addresses)}
        in_rank_order = sorted(node_of, key=lambda index: (places[node_of[index]], index))
        return tuple(
            self._started_host(index, bundles[index], node_of[index], addresses[node_of[index]])
            for index in in_rank_order
        )

    def _node_of_bundles(self) -> dict[int, str]:
        table = self._groups.placement_group_table(self._group)
        return {int(index): node for index, node in table["bundles_to_node_id"].items()}

    def _started_host(self, index: int, bundle: Bundle, node: str, address: str) -> Any:
        in_bundle = self._strategies.PlacementGroupSchedulingStrategy(
            self._group, placement_group_bundle_index=index
        )
        actor = self._ray.remote(RankHost).options(
            num_cpus=bundle.cpus,
            num_gpus=bundle.gpus,
            max_concurrency=_CALLS_AT_ONCE,
            scheduling_strategy=in_bundle,
        )
        return actor.remote(node, address, bool(bundle.gpus))

    def _received_streams(self, n: int) -> list[socket.socket]:
        _, fds, _, _ = socket.recv_fds(self._sockets, 1, n)
        return [socket.socket(fileno=fd) for fd in fds]

    def _start_ranks(self, request: Launch, hosts: Sequence[Any], meet: str) -> list[int]:
        order = msgspec.msgpack.encode(request)
        promises = [host.launch.remote(order, rank, meet) for rank, host in enumerate(hosts)]
        try:
            pids: list[int] = self._get(promises, request.deadline_s)
        except TimeoutError:
            raise
        except OSError as error:  # Ray raises its own kind of the host's error
            interpreter = f"the interpreter {request.python or 'that Ray runs with'}"
            raise UsageError(
                f"no worker could be started with {interpreter} on a host: {last_line(error)}."
            ) from error
        return pids

    def _meeting_address(self, ranks: int) -> str:
        """Return where ranks meet, on the host of the first; an empty text for a single rank."""
        if ranks == 1:
            return ""
        port = self._get(self._hosts[0].free_port.remote(), CALL_S)
        return f"{self._slots[0].address}:{port}"

    def _busy(self, request: Reserve) -> DeviceBusy:
        free = self._ray.available_resources()
        return DeviceBusy(
            f"--llmperf-cluster={self._address!r}: {_in_words(request.bundles)} were not free "
            f"together within {request.wait_s:g} s; the cluster has {free.get('CPU', 0):g} CPUs "
            f"and {free.get('GPU', 0):g} GPUs free now. 'ray status' says who holds the rest. "
            "Let it finish, or wait longer with --llmperf-wait.",
        )

    def _kill_on(self, hosts: Sequence[Any], model: str) -> None:
        for host in hosts:
            # An actor that is gone has taken its rank along.
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._get(host.kill.remote(model), CALL_S)

    def _get(self, promise: Any, timeout_s: float) -> Any:
        return self._ray.get(promise, timeout=timeout_s)


_HANDLERS: dict[type[Request], Callable[[Driver, Any], Answer]] = {
    ListHosts: Driver.list_hosts,
    Reserve: Driver.reserve,
    Launch: Driver.launch,
    ReturnBundles: Driver.return_bundles,
    Kill: Driver.kill,
    Exit: Driver.exit,
    Stacks: Driver.stacks,
    ReadLog: Driver.read_log,
    FileSize: Driver.file_size,
    ReadFile: Driver.read_file,
    WriteFile: Driver.write_file,
}


def serve(wire: Wire[Request], address: str, sockets: socket.socket) -> None:
    """Connect, and answer requests until the session closes its end."""
    driver: Driver | None = None
    with contextlib.suppress(WireClosed):
        while True:
            request = wire.receive(timeout_s=None)
            if request is None:
                continue
            answer: Answer
            try:
                driver = driver or Driver(connected(address), address, sockets)
                answer = driver.handle(request)
            # The boundary of the process: all errors travel.
            except Exception as error:  # noqa: BLE001
                answer = Refused(failure=failure(as_own_error(error, address)))
            wire.send(answer, timeout_s=None)
    if driver is not None:
        driver.return_bundles()
        import_module("ray").shutdown()


def main(argv: list[str] | None = None) -> None:
    """Serve the inherited socket."""
    options = _parser().parse_args(argv)
    lead_own_group()
    if options.die_with_parent:
        die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the session decides what an interrupt ends
    for fd in (options.fd, options.sockets):
        os.set_inheritable(fd, False)
    decoder = cast("Any", msgspec.msgpack.Decoder)(Request)
    wire: Wire[Request] = Wire(socket.socket(fileno=options.fd), decoder)
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


def _resources(bundle: Bundle) -> dict[str, int]:
    return {name: n for name, n in (("CPU", bundle.cpus), ("GPU", bundle.gpus)) if n}


def _in_words(bundles: Sequence[Bundle]) -> str:
    gpus = f" and {bundles[0].gpus} GPU" if bundles[0].gpus else ""
    return f"{len(bundles)} x {bundles[0].cpus} CPUs{gpus}"


if __name__ == "__main__":
    main()
