"""The session's end of its connection to a cluster: one request at a time, each with a deadline.

Imports no Ray.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from pytest_llmperf.cluster.messages import Answer, Refused, Request
from pytest_llmperf.errors import WorkerDied, WorkerError, WorkerHung, error_class
from pytest_llmperf.wire.frames import Wire, WireClosed
from pytest_llmperf.workers.process import WorkerProcess

DRIVER = ("-P", "-m", "pytest_llmperf.cluster.driver")
_TICK_S = 0.2
_END_S = 15.0
_TAIL_LINES = 20

Reply = TypeVar("Reply")


class Link:
    """The process that speaks with Ray.

    One thread uses it at a time; an error of the connection has ended it.
    """

    def __init__(self, process: WorkerProcess, sockets: socket.socket, address: str) -> None:
        decoder = cast("Any", msgspec.msgpack.Decoder(Answer))
        self._process = process
        self._sockets = sockets
        self._address = address
        self._killed = False
        self._wire: Wire[Answer] = Wire(
            socket.socket(fileno=os.dup(process.wire.fileno())), decoder
        )

    @classmethod
    def open(cls, address: str, log_dir: Path) -> Link:
        """Start the process. That the cluster answers is seen by the first request."""
        log_dir.mkdir(parents=True, exist_ok=True)
        session_end, driver_end = socket.socketpair()
        with driver_end:
            fd = driver_end.fileno()
            program = (*DRIVER, "--address", address, "--sockets", str(fd))
            process = WorkerProcess.start(
                python=sys.executable,
                rank=0,
                world_size=1,
                log=log_dir / f"cluster-{os.getpid()}.log",
                env=dict(os.environ),
                program=program,
                pass_fds=(fd,),
            )
        return cls(process, session_end, address)

    @property
    def alive(self) -> bool:
        """Whether it can take another request."""
        return not self._killed and not self._process.exited()

    def ask(
        self,
        request: Request,
        kind: type[Reply],
        *,
        deadline_s: float,
        sockets: Sequence[socket.socket] = (),
    ) -> Reply:
        """Return the answer to a request. `sockets` go along with it.

        Raises:
            WorkerDied, WorkerHung: the connection is over. What else is raised is the cluster's
                answer.
        """
        answer = self._exchanged(request, sockets, deadline_s)
        if isinstance(answer, Refused):
            raise error_class(answer.failure.kind)(answer.failure.message)
        if not isinstance(answer, kind):
            raise WorkerError(
                f"the connection to {self._address!r} answered with a {type(answer).__name__}."
            )
        return answer

    def close(self) -> None:
        """Let it give everything back and end; kill it when it does not. May be called again."""
        self._wire.close()
        self._process.wire.close()
        self._process.wait_exited(_END_S)
        self.kill()

    def kill(self) -> None:
        """End the process; Ray then ends what it started. May be called again."""
        self._killed = True
        self._process.kill()
        self._wire.close()
        self._sockets.close()

    def _exchanged(
        self, request: Request, sockets: Sequence[socket.socket], deadline_s: float
    ) -> Answer:
        if self._killed:
            raise WorkerDied(f"the connection to {self._address!r} has ended.")
        try:
            if sockets:
                fds = [rank_end.fileno() for rank_end in sockets]
                socket.send_fds(self._sockets, [b"s"], fds)
            self._wire.send(request, timeout_s=deadline_s)
            return self._answer(type(request).__name__, deadline_s)
        except (WireClosed, OSError) as error:
            raise self._ended() from error
        except BaseException:
            self.kill()
            raise

    def _ended(self) -> WorkerDied:
        """Return the error for a connection that ended by itself, after killing what is left."""
        self._process.wait_exited(_END_S)
        how = self._process.exit_text()
        self.kill()
        return WorkerDied(f"the connection to {self._address!r} ended by {how}.{self._tail()}")

    def _answer(self, what: str, deadline_s: float) -> Answer:
        end_s = time.monotonic() + deadline_s
        while (answer := self._wire.receive(timeout_s=_TICK_S)) is None:
            if time.monotonic() >= end_s:
                raise WorkerHung(
                    f"--llmperf-cluster={self._address!r} gave no answer to {what} within "
                    f"{deadline_s:g} s.{self._tail()}",
                )
        return answer

    def _tail(self) -> str:
        text = self._process.log_tail(_TAIL_LINES)
        return (
            f"\n--- last lines of {self._process.log} ---\n{text}"
            if text
            else f" (Its log is empty: {self._process.log})"
        )
