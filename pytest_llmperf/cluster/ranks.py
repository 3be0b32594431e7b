"""The ranks of one model on a cluster, as `WorkerGroup` sees workers.

They have the same wire and the same log, on another host.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from pytest_llmperf.cluster.files import fetch, give
from pytest_llmperf.cluster.link import Link, Reply
from pytest_llmperf.cluster.messages import (
    Done,
    Ended,
    Exit,
    FileSize,
    Kill,
    ReadFile,
    ReadLog,
    Request,
    Size,
    Slot,
    Stacks,
    Text,
    WriteFile,
)
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.instruments.energy import NvmlMeter
from pytest_llmperf.wire.commands import Command, CompareReference, MakeReference, R
from pytest_llmperf.wire.frames import parent_end
from pytest_llmperf.wire.results import EnergyRead
from pytest_llmperf.workers import logs
from pytest_llmperf.workers.exchange import OnBeat
from pytest_llmperf.workers.group import WorkerGroup
from pytest_llmperf.workers.process import exit_text

_ASK_S = 90.0


class ClusterRank:
    """See workers.process.Worker. Its log is copied here when it is looked at, and at the end."""

    def __init__(
        self,
        link: Link,
        session_end: socket.socket,
        *,
        model: str,
        rank: int,
        pid: int,
        slot: Slot,
        log: Path,
    ) -> None:
        self.rank = rank
        self.pid = pid
        self.slot = slot
        self.log = log
        self.greeted = False
        self.wire = parent_end(session_end)
        self._link = link
        self._session_end = session_end
        self._model = model
        self._ended: Ended | None = None
        self._killed = False
        log.touch()

    @property
    def where(self) -> str:
        """Its process id there, and the host."""
        return f"pid {self.pid} on {self.slot}"

    def exited(self) -> bool:
        """Whether its stream has ended and all of it is read. Asks nobody."""
        if self._killed or self._ended is not None:
            return True
        try:
            return self._session_end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def wait_exited(self, timeout_s: float) -> bool:
        """Whether the process has ended, after waiting for it at most `timeout_s`.

        Its log is here then.
        """
        if self._ended is None and not self._killed:
            # A host that is gone says nothing: the rank has ended with it.
            with contextlib.suppress(LlmperfError):
                request = Exit(model=self._model, rank=self.rank, wait_s=timeout_s)
                answer = self._ask(request, Ended, timeout_s)
                if not answer.ended:
                    return False
                self._ended = answer
            self._copy_log()
        return True

    def kill(self) -> None:
        """End the process and all that it started. May be called again."""
        if not self._killed:
            self._copy_log()
            self._killed = True
            with contextlib.suppress(LlmperfError):  # the link is gone, and the rank with it
                self._ask(Kill(model=self._model, rank=self.rank), Done, 0)
            self.wire.close()

    def exit_text(self) -> str:
        """Return how it ended; where nobody can say, that its host or Ray's process was lost."""
        if self._ended is None:
            return f"the loss of its host {self.slot}, or of Ray's process there"
        return exit_text(self._ended.code)

    def exit_code(self) -> int | None:
        """Return the exit code as subprocess reports it; None while it runs or if not known."""
        return None if self._ended is None else self._ended.code

    def stacks(self) -> str:
        """Return the stacks of all threads, or why there are none."""
        try:
            answer = self._ask(Stacks(model=self._model, rank=self.rank), Text, 0)
        except LlmperfError as error:
            return f"(no stacks: {error})"
        self._copy_log()
        return answer.text.decode("utf-8", "replace")

    def log_tail(self, lines: int) -> str:
        """Return the last lines of its output."""
        self._copy_log()
        return logs.tail(self.log, lines)

    def file_size(self, path: str) -> int:
        """See cluster.files.Remote."""
        return self._ask(FileSize(rank=self.rank, path=path), Size, 0).size

    def read_file(self, path: str, start: int) -> bytes:
        """See cluster.files.Remote."""
        return self._ask(ReadFile(rank=self.rank, path=path, start=start), Text, 0).text

    def write_file(self, path: str, start: int, data: bytes) -> None:
        """See cluster.files.Remote."""
        self._ask(WriteFile(rank=self.rank, path=path, start=start, data=data), Done, 0)

    def _copy_log(self) -> None:
        """Append what the rank has written since."""
        if self._killed or not self._link.alive:
            return
        with contextlib.suppress(LlmperfError):
            start = self.log.stat().st_size
            request = ReadLog(model=self._model, rank=self.rank, start=start)
            output = self._ask(request, Text, 0).text
            with self.log.open("ab") as file:
                file.write(output)

    def _ask(self, request: Request, kind: type[Reply], extra_s: float) -> Reply:
        return self._link.ask(request, kind, deadline_s=_ASK_S + extra_s)


class ClusterGroup(WorkerGroup):
    """A group whose processes are not of this host.

    The files that its commands name are brought there, and back.
    """

    def __init__(self, ranks: tuple[ClusterRank, ...], *, name: str, silence_s: float) -> None:
        super().__init__(ranks, name=name, silence_s=silence_s, oom_before={})
        self._ranks = ranks

    def call_all(
        self, command: Command[R], *, deadline_s: float, on_beat: OnBeat | None = None
    ) -> tuple[R, ...]:
        """Send a command to every rank. See WorkerGroup.call_all.

        A reference that is made there is here afterwards; one that is compared with is there first.
        """
        self._bring_files(command)
        results = super().call_all(command, deadline_s=deadline_s, on_beat=on_beat)
        if isinstance(command, MakeReference):
            fetch(command.path, self._ranks[0])
        n_hosts = len({rank.slot.node for rank in self._ranks})
        return tuple(map(of_several_hosts, results)) if n_hosts > 1 else results

    def _bring_files(self, command: Command[Any]) -> None:
        for rank in self._ranks:
            if isinstance(command, MakeReference):
                rank.write_file(command.path, 0, b"")  # makes the folder
            elif isinstance(command, CompareReference):
                give(command.path, rank)

    @property
    def pids(self) -> tuple[int, ...]:
        """None that this host knows."""
        return ()


def of_several_hosts(result: R) -> R:
    """Return a rank's result without what holds for ranks of one host alone.

    The energy counter of a CPU is one for all ranks of its host; a GPU's counts for its rank.
    """
    if not isinstance(result, EnergyRead) or result.energy.source == NvmlMeter.source:
        return result
    if result.energy.joules is None:
        return result
    why = "the ranks are on several hosts, and a CPU's counter is one for the ranks of a host"
    return replace(result, energy=replace(result.energy, joules=None, reason=why))
