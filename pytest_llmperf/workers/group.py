"""The workers of one loaded model, as the session talks to them: start, call, watch, end.

Imports no torch.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import itertools
import os
import re
import sys
import time
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_llmperf.engines import rendezvous
from pytest_llmperf.errors import UsageError, WorkerError
from pytest_llmperf.wire.commands import Close, Command, R, checked
from pytest_llmperf.wire.messages import Reply
from pytest_llmperf.workers import logs
from pytest_llmperf.workers.exchange import Exchange, OnBeat, blames_a_peer, is_answer
from pytest_llmperf.workers.forkservers import CannotForkError
from pytest_llmperf.workers.kernel_oom import read_counters
from pytest_llmperf.workers.process import (
    WORKER,
    Worker,
    WorkerProcess,
    free_port,
    rank_environment,
)

START_DEADLINE_S = 60.0
FORK_DEADLINE_S = 300.0
"""For a fork server to come up and import an engine, from a cold disk of another host maybe."""

SILENCE_S = 60.0
"""Longest wait without a heartbeat.

Loading a large shared library holds the interpreter, and no heartbeat is sent meanwhile.
"""

_NOT_RUNNABLE = (FileNotFoundError, PermissionError, NotADirectoryError)
_ADVICE = {
    errno.EMFILE: " Raise the limit of open files (ulimit -n), or close some.",
    errno.ENFILE: " The host has too many files open.",
    errno.EAGAIN: " Raise the limit of processes (ulimit -u), or end some.",
    errno.ENOMEM: " The host has too little memory.",
    errno.ENOEXEC: " What --llmperf-python names is not a program.",
}

_live: weakref.WeakSet[WorkerGroup] = weakref.WeakSet()
_numbers = itertools.count(1)


class WorkerGroup:
    """One worker process for each rank of one loaded model.

    Whatever ends the group ends every process it started.

    One thread uses a group at a time. Errors that are the engine's answer (UsageError, LoadError,
    NotInEffect, InvalidRun, NotMeasured) leave it alive; every other error, KeyboardInterrupt
    included, has killed it when it reaches the caller.
    """

    def __init__(
        self,
        workers: tuple[Worker, ...],
        *,
        name: str,
        silence_s: float,
        oom_before: dict[str, int],
        not_forked: str = "",
        fork_failure: str = "",
    ) -> None:
        self.name = name
        self.fork_failure = fork_failure
        self._not_forked = not_forked or fork_failure
        self._workers = workers
        self._silence_s = silence_s
        self._oom_before = oom_before
        self._owner_pid = os.getpid()
        self._ended = False
        _live.add(self)

    @classmethod
    def start(
        cls,
        *,
        ranks: int = 1,
        python: str = sys.executable,
        log_dir: Path,
        env: Mapping[str, str] | None = None,
        name: str,
        silence_s: float = SILENCE_S,
        start_deadline_s: float = START_DEADLINE_S,
        program: Sequence[str] = WORKER,
        cwd: Path | None = None,
        fork_engine: str = "",
        not_forked: str = "",
    ) -> Self:
        """Start the workers and wait until each has said hello.

        Args:
            ranks: number of processes; for more than one, torch.distributed's variables are set,
                with a free port.
            python: interpreter that has pytest-llmperf and the engine.
            log_dir: one log a rank is written there, made if missing.
            env: variables set on top of this process's own.
            name: of the logs, for people.
            silence_s: longest time without a heartbeat during a command.
            start_deadline_s: for all ranks to come up.
            program: arguments of the interpreter, up to those that every worker takes.
            cwd: working directory (default: this process's own).
            fork_engine: fork the workers from a server that has imported this engine, where that
                can be, and nothing is said in `not_forked`.
            not_forked: why they are started as programs.

        Raises:
            UsageError: `python` cannot be run. WorkerDied, WorkerHung: a worker did not come up;
                its log says why.
        """
        oom_before = read_counters()
        rank_start = _RankStart(
            python=python,
            program=program,
            cwd=cwd,
            fork_engine=fork_engine,
            not_forked=not_forked or ("" if fork_engine else "no fork was asked for"),
        )
        workers = _start_all(ranks, rank_start, log_dir=log_dir, env=env or {}, name=name)
        group = cls(
            workers,
            name=name,
            silence_s=silence_s,
            oom_before=oom_before,
            not_forked=rank_start.not_forked,
            fork_failure=rank_start.fork_failure,
        )
        group.greet(python, start_deadline_s)
        return group

    def greet(self, python: str, deadline_s: float) -> None:
        """Wait until every rank has said hello.

        Raises WorkerDied, WorkerHung; then all are killed.
        """
        with self._killed_on_error():
            try:
                self._exchange("start-up", deadline_s).greetings()
            except WorkerError as error:
                error.add_note(
                    f"The worker's interpreter, {python}, needs pytest-llmperf and the engine's "
                    "packages."
                )
                raise
        for worker in self._workers:
            worker.greeted = True

    def call(self, command: Command[R], *, deadline_s: float, on_beat: OnBeat | None = None) -> R:
        """Return rank 0's result of `call_all`."""
        return self.call_all(command, deadline_s=deadline_s, on_beat=on_beat)[0]

    def call_all(
        self, command: Command[R], *, deadline_s: float, on_beat: OnBeat | None = None
    ) -> tuple[R, ...]:
        """Send a command to every rank and wait for each rank's result, in rank order.

        `on_beat` is called in this thread with each heartbeat.

        Raises:
            UsageError, LoadError, NotInEffect, InvalidRun, NotMeasured: the engine's answer; the
                group stays alive.
            WorkerDied, WorkerHung, OutOfMemory, WorkerError: a rank failed; all are killed, the
                message ends with its log.
        """
        if not self.alive:
            raise WorkerError(
                f"{type(command).__name__} was sent to the workers of {self.name!r}, which have "
                "ended. Start new ones.",
            )
        exchange = self._exchange(type(command).__name__, deadline_s)
        with self._killed_on_error():
            exchange.send(command)
            replies = exchange.replies(on_beat)
        self._raise_failure(exchange, replies)
        with self._killed_on_error():
            return tuple(_result(replies[rank], command) for rank in sorted(replies))

    def close(self, timeout_s: float = 10) -> bool:
        """Ask the workers to free everything and exit, then kill what is left.

        Returns whether all ended by themselves.
        """
        clean = False
        if not self._ended:
            end_s = time.monotonic() + timeout_s
            try:
                clean = self._ask_to_close(end_s)
            finally:
                self.kill()
        return clean

    def kill(self) -> None:
        """SIGKILL to every process of every rank. May be called again."""
        self._ended = True
        for worker in self._workers:
            worker.kill()

    @property
    def alive(self) -> bool:
        """Whether every rank can take a command."""
        return not self._ended and not any(worker.exited() for worker in self._workers)

    @property
    def started(self) -> str:
        """How the workers were started: "forked", or "program" and why not forked."""
        return f"program ({self._not_forked})" if self._not_forked else "forked"

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids in rank order."""
        return tuple(worker.pid for worker in self._workers)

    @property
    def logs(self) -> tuple[Path, ...]:
        """Log files in rank order."""
        return tuple(worker.log for worker in self._workers)

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of each rank's output."""
        if len(self._workers) == 1:
            return self._workers[0].log_tail(lines)
        return "\n".join(f"--- rank {w.rank} ---\n{w.log_tail(lines)}" for w in self._workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.kill()

    def _exchange(self, what: str, deadline_s: float) -> Exchange:
        return Exchange(
            self._workers,
            what=what,
            deadline_s=deadline_s,
            silence_s=self._silence_s,
            oom_before=self._oom_before,
        )

    def _ask_to_close(self, end_s: float) -> bool:
        with contextlib.suppress(WorkerError):
            if self.alive:
                self.call_all(Close(), deadline_s=end_s - time.monotonic())
        return all(_ends_cleanly(worker, end_s) for worker in self._workers)

    def _raise_failure(self, exchange: Exchange, replies: dict[int, Reply]) -> None:
        """Raise the first failure to arrive, one that blames another rank last.

        Kills the group unless it is an answer that every rank gave time to follow.
        """
        for reply in sorted(replies.values(), key=_blames_a_peer):
            if reply.failure is not None:
                if not is_answer(reply.failure) or len(replies) < len(self._workers):
                    self.kill()
                raise exchange.error(reply, reply.failure)

    @contextlib.contextmanager
    def _killed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.kill()
            raise

    def _kill_at_exit(self) -> None:
        if self._owner_pid == os.getpid() and not self._ended:
            self.kill()


@dataclass
class _RankStart:
    """Starts the ranks of one group alike. After one could not be forked, none is."""

    python: str
    program: Sequence[str]
    cwd: Path | None
    fork_engine: str
    not_forked: str
    fork_failure: str = ""

    def start(self, *, rank: int, ranks: int, log: Path, env: Mapping[str, str]) -> WorkerProcess:
        """Fork a rank where that can be, else start it as a program.

        Raises UsageError, and WorkerError where the system refuses what that takes.
        """
        try:
            return self._start(rank, ranks, log, env)
        except _NOT_RUNNABLE as error:
            raise UsageError(
                f"no worker could be started with the interpreter {self.python!r}: {error}."
            ) from error
        except OSError as error:
            raise WorkerError(
                f"no worker could be started: {error}.{_ADVICE.get(error.errno or 0, '')}"
            ) from error

    def _start(self, rank: int, ranks: int, log: Path, env: Mapping[str, str]) -> WorkerProcess:
        if not self.not_forked and not self.fork_failure:
            try:
                return WorkerProcess.fork(
                    python=self.python,
                    engine=self.fork_engine,
                    rank=rank,
                    log=log,
                    env=env,
                    deadline_s=FORK_DEADLINE_S,
                )
            except CannotForkError as error:
                self.fork_failure = str(error)
        return WorkerProcess.start(
            python=self.python,
            rank=rank,
            world_size=ranks,
            log=log,
            env=env,
            program=self.program,
            cwd=self.cwd,
        )


def _start_all(
    ranks: int, rank_start: _RankStart, *, log_dir: Path, env: Mapping[str, str], name: str
) -> tuple[WorkerProcess, ...]:
    """Start one process for each rank, or none: those that came up are killed when one does not."""
    log_dir = logs.usable(log_dir)
    logs.prune(log_dir)
    stem = f"{file_stem(name)}-{os.getpid()}-{next(_numbers)}"
    port = free_port() if ranks > 1 else 0
    base = {**os.environ, **env, rendezvous.SECRET: uuid.uuid4().hex}
    workers: list[WorkerProcess] = []
    with contextlib.ExitStack() as started:
        for rank in range(ranks):
            worker = rank_start.start(
                rank=rank,
                ranks=ranks,
                log=log_dir / f"{stem}-rank{rank}.log",
                env=rank_environment(rank=rank, ranks=ranks, port=port, base=base),
            )
            started.callback(worker.kill)
            workers.append(worker)
        started.pop_all()
    return tuple(workers)


def file_stem(name: str) -> str:
    """Return a name of workers as the beginning of a file's name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name)[:100]


def _ends_cleanly(worker: Worker, end_s: float) -> bool:
    return worker.wait_exited(max(0.0, end_s - time.monotonic())) and worker.exit_code() == 0


def _blames_a_peer(reply: Reply) -> bool:
    return reply.failure is not None and blames_a_peer(reply.failure)


def _result(reply: Reply, command: Command[R]) -> R:
    if reply.result is None:
        raise WorkerError(f"rank {reply.rank} answered with neither a result nor a failure.")
    return checked(reply.result, command)


@atexit.register
def _kill_all() -> None:
    for group in list(_live):
        group._kill_at_exit()  # noqa: SLF001 - our own
