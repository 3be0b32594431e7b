"""Where a base side's commands arrive and its answers leave."""

from __future__ import annotations

import os
import queue
import sys
import threading

from pytest_llmperf.wire.commands import AnyCommand, RunTest
from pytest_llmperf.wire.frames import Wire
from pytest_llmperf.wire.messages import Hello, Reply
from pytest_llmperf.wire.results import Result
from pytest_llmperf.worker.failures import failure
from pytest_llmperf.worker.loop import Pulse, read


class Desk:
    """Takes commands and sends answers.

    Each command has one answer, given by whoever finishes what it asked.
    """

    def __init__(self, wire: Wire[AnyCommand]) -> None:
        self._wire = wire
        self._commands: queue.SimpleQueue[AnyCommand] = queue.SimpleQueue()
        wire.send(Hello(rank=0, pid=os.getpid(), python=sys.version.split()[0]), timeout_s=None)
        reader = threading.Thread(
            target=read, args=(wire, self._commands), name="llmperf-reader", daemon=True
        )
        reader.start()
        self._pulse = Pulse(wire, 0)
        self.has_open_command = False

    def next(self) -> AnyCommand:
        """Wait for a command. It is answered by the next `answer` or `fail`."""
        command = self._commands.get()
        self.has_open_command = True
        self._pulse.start(_describe(command))
        return command

    def answer(self, result: Result) -> None:
        """Answer the open command."""
        self._send(Reply(rank=0, result=result))

    def fail(self, error: BaseException) -> None:
        """Answer the open command with an error."""
        self._send(Reply(rank=0, failure=failure(error)))

    def _send(self, reply: Reply) -> None:
        self._pulse.stop()
        self.has_open_command = False
        self._wire.send(reply, timeout_s=None)


def _describe(command: AnyCommand) -> str:
    return f"RunTest {command.nodeid}" if isinstance(command, RunTest) else type(command).__name__
