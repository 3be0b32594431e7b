"""The ranks of one model on a cluster, as `WorkerGroup` sees workers: the same wire, the same log, another host."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from msgspec.structs import replace

from pytest_llmperf.cluster.files import fetch, give
from pytest_llmperf.cluster.link import Link, Wanted
from pytest_llmperf.cluster.messages import (
    Done,
    Ended,
    Exit,
    FileSize,
    Kill,
    Place,
    ReadFile,
    ReadLog,
    Request,
    Size,
    Stacks,
    Text,
    WriteFile,
)
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.instruments.energy import NvmlMeter
from pytest_llmperf.wire.commands import Command, CompareReference, MakeReference, R
from pytest_llmperf.wire.frames import parent_end
from pytest_llmperf.wire.results import EnergyRead
from pytest_llmperf.workers.exchange import OnBeat
from pytest_llmperf.workers.group import WorkerGroup
from pytest_llmperf.workers.process import exit_text

_ASK_S = 90.0
_LOG_TAIL_BYTES = 2**16


class ClusterRank:
    """See session.process.Worker. Its log is copied here when it is looked at, and at the end."""

    def __init__(
        self,
        link: Link,
        ours: socket.socket,
        *,
        model: str,
        rank: int,
        pid: int,
        place: Place,
        log: Path,
    ) -> None:
        self.rank = rank
        self.pid = pid
        self.place = place
        self.log = log
        self.greeted = False
        self.wire = parent_end(ours)
        self._link = link
        self._ours = ours
        self._model = model
        self._ended: Ended | None = None
        self._killed = False
        log.touch()

    @property
    def where(self) -> str:
        """Its process id there, and the host."""
        return f"pid {self.pid} on {self.place}"

    def exited(self) -> bool:
        """Whether its stream has ended and all of it is read. Asks nobody."""
        if self._killed or self._ended is not None:
            return True
        try:
            return self._ours.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
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
                found = self._ask(
                    Exit(model=self._model, rank=self.rank, wait_s=timeout_s), Ended, timeout_s
                )
                if not found.ended:
                    return False
                self._ended = found
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
        """How it ended; that its host or Ray's process there was lost, where nobody can say."""
        if self._ended is None:
            return f"the loss of its host {self.place}, or of Ray's process there"
        return exit_text(self._ended.code)

    def exit_code(self) -> int | None:
        """As subprocess reports it; None while it runs or where it is not known."""
        return None if self._ended is None else self._ended.code

    def stacks(self) -> str:
        """Stacks of all threads, or why there are none."""
        try:
            text = self._ask(Stacks(model=self._model, rank=self.rank), Text, 0).text.decode(
                "utf-8", "replace"
            )
        except LlmperfError as error:
            return f"(no stacks: {error})"
        self._copy_log()
        return text

    def log_tail(self, lines: int) -> str:
        """The last lines of its output."""
        self._copy_log()
        data = self.log.read_bytes()[-_LOG_TAIL_BYTES:]
        return "\n".join(data.decode("utf-8", "replace").splitlines()[-lines:])

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
            more = self._ask(ReadLog(model=self._model, rank=self.rank, start=start), Text, 0).text
            with self.log.open("ab") as file:
                file.write(more)

    def _ask(self, request: Request, kind: type[Wanted], extra_s: float) -> Wanted:
        return self._link.ask(request, kind, deadline_s=_ASK_S + extra_s)


class ClusterGroup(WorkerGroup):
    """A group whose processes are not of this host: the files that its commands name are brought there, and back."""

    def __init__(self, ranks: tuple[ClusterRank, ...], *, name: str, silence_s: float) -> None:
        super().__init__(ranks, name=name, silence_s=silence_s, oom_before={})
        self._ranks = ranks

    def call_all(
        self, command: Command[R], *, deadline_s: float, on_beat: OnBeat | None = None
    ) -> tuple[R, ...]:
        """As WorkerGroup's.

        A reference that is made there is here afterwards; one that is compared with is there first.
        """
        for rank in self._ranks:
            if isinstance(command, MakeReference):
                rank.write_file(command.path, 0, b"")
            elif isinstance(command, CompareReference):
                give(command.path, rank)
        results = super().call_all(command, deadline_s=deadline_s, on_beat=on_beat)
        if isinstance(command, MakeReference):
            fetch(command.path, self._ranks[0])
        several = len({rank.place.node for rank in self._ranks}) > 1
        return tuple(map(of_several_hosts, results)) if several else results

    @property
    def pids(self) -> tuple[int, ...]:
        """None that this host knows."""
        return ()


def of_several_hosts(result: R) -> R:
    """What a rank says that holds for ranks of one host alone is taken back: the counter of a CPU is one for all of these."""
    if (
        not isinstance(result, EnergyRead)
        or result.energy.joules is None
        or result.energy.source == NvmlMeter.source
    ):
        return result
    why = "the ranks are on several hosts, and a CPU's counter is one for the ranks of a host"
    return replace(result, energy=replace(result.energy, joules=None, reason=why))
