"""The worker's threads: one reads commands, one sends heartbeats, the main one works.

The one that reads notices the end of the session.
"""

from __future__ import annotations

import os
import queue
import sys
import threading

from pytest_llmperf.processes import kill_own_group
from pytest_llmperf.wire.commands import AnyCommand, Close, Open, Run
from pytest_llmperf.wire.frames import Wire, WireClosed, WireError, frame
from pytest_llmperf.wire.messages import Heartbeat, Hello, Reply
from pytest_llmperf.worker.failures import failure
from pytest_llmperf.worker.host import Host

BEAT_S = 1.0


class Pulse:
    """Sends a heartbeat a second while a command is being done.

    The frame is made when the command starts: in timed work the thread wakes, makes one system
    call, and sleeps.
    """

    def __init__(self, wire: Wire[AnyCommand], rank: int) -> None:
        self._wire = wire
        self._rank = rank
        self._frame: bytes | None = None
        threading.Thread(target=self._beat, name="llmperf-heartbeat", daemon=True).start()

    def start(self, doing: str) -> None:
        """Say `doing` from now on."""
        self._frame = frame(Heartbeat(rank=self._rank, doing=doing))

    def stop(self) -> None:
        """Say nothing until the next start: nobody listens between commands."""
        self._frame = None

    def _beat(self) -> None:
        never = threading.Event()
        while not never.wait(BEAT_S):
            data = self._frame
            if data is not None:
                try:
                    self._wire.send_frame(data, timeout_s=None)
                except OSError:
                    return


def serve(wire: Wire[AnyCommand], host: Host) -> None:
    """Answer commands until Close.

    Kills its own process group when the session's end of the socket closes.
    """
    commands: queue.SimpleQueue[AnyCommand] = queue.SimpleQueue()
    wire.send(hello(host.rank), timeout_s=None)
    threading.Thread(target=read, args=(wire, commands), name="llmperf-reader", daemon=True).start()
    pulse = Pulse(wire, host.rank)
    while True:
        command = commands.get()
        pulse.start(describe(command))
        reply = host.answer(command)
        pulse.stop()
        _send(wire, reply)
        if isinstance(command, Close):
            return


def hello(rank: int) -> Hello:
    """Return the first message of this process."""
    return Hello(rank=rank, pid=os.getpid(), python=sys.version.split()[0])


def describe(command: AnyCommand) -> str:
    """Return what a heartbeat says: the command, and what tells two of a kind apart."""
    name = type(command).__name__
    if isinstance(command, Open):
        return f"{name} {command.plan.model.name} {command.plan.strategy}"
    if isinstance(command, Run):
        return f"{name} {command.repetition}"
    return name


def read(wire: Wire[AnyCommand], commands: queue.SimpleQueue[AnyCommand]) -> None:
    """Put what arrives in the queue.

    Kills its own process group when the session's end of the socket closes.
    """
    try:
        while True:
            command = wire.receive(timeout_s=None)
            if command is not None:
                commands.put(command)
    except WireClosed:
        kill_own_group()
    except WireError as error:
        # Stderr is the worker's log.
        print(f"llmperf worker: {error}", file=sys.stderr, flush=True)  # noqa: T201
        kill_own_group()


def _send(wire: Wire[AnyCommand], reply: Reply) -> None:
    try:
        data = frame(reply)
    except WireError as error:
        data = frame(Reply(rank=reply.rank, failure=failure(error)))
    wire.send_frame(data, timeout_s=None)
