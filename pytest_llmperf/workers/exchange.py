"""One command sent to every rank, and the bounded wait for every rank's reply.

A wait that fails says why.
"""

from __future__ import annotations

import re
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pytest_llmperf.errors import (
    InvalidRun,
    LlmperfError,
    LoadError,
    NotInEffect,
    NotMeasured,
    OutOfMemory,
    UsageError,
    WorkerDied,
    WorkerError,
    WorkerHung,
    error_class,
)
from pytest_llmperf.wire import bounds
from pytest_llmperf.wire.commands import Command
from pytest_llmperf.wire.frames import WireClosed, WireError
from pytest_llmperf.wire.messages import Failure, FromWorker, Heartbeat, Hello, Reply
from pytest_llmperf.workers.kernel_oom import killed_since, read_counters
from pytest_llmperf.workers.process import Worker

ANSWERS: tuple[type[LlmperfError], ...] = (
    UsageError,
    LoadError,
    NotInEffect,
    InvalidRun,
    NotMeasured,
)
"""Errors of the engine that are an answer to the command: the worker stays usable."""

OnBeat = Callable[[Heartbeat], None]
_TICK_S = 0.2
_MOST_MESSAGES = 500  # of a rank that are read in a row
_EXIT_S = 5.0
_GRACE_S = 5.0
_PEER_GRACE_S = 3.0
_PEER_LOST = re.compile(r"gloo|NCCL|ProcessGroup|by peer", re.IGNORECASE)
_TAIL_LINES = 20

Message = TypeVar("Message", Hello, Reply)


class Exchange:
    """What the session waits for from `workers`, and the time by which it must have come."""

    def __init__(
        self,
        workers: Sequence[Worker],
        *,
        what: str,
        deadline_s: float,
        silence_s: float,
        oom_before: dict[str, int],
    ) -> None:
        now_s = time.monotonic()
        self._workers = workers
        self._what = what
        self._deadline_s = deadline_s
        self._silence_s = silence_s
        self._oom_before = oom_before
        self._end_s = now_s + deadline_s
        self._grace_end_s: float | None = None
        self._heard_s = {w.rank: now_s for w in workers}

    def send(self, command: Command[Any]) -> None:
        """Send the command to every rank. A rank that is gone is noticed by the wait that follows.

        Raises WorkerHung.
        """
        largest_bytes = bounds.largest_bytes(command)
        for worker in self._workers:
            worker.wire.expect(bounds.decoder(type(command)), largest_bytes=largest_bytes)
            try:
                worker.wire.send(command, timeout_s=self._left_s())
            except TimeoutError as error:
                raise self._hung(
                    [worker], f"it did not take the message within {self._deadline_s:g} s"
                ) from error
            except OSError:
                continue

    def greetings(self) -> dict[int, Hello]:
        """Return every rank's Hello. Raises WorkerDied, WorkerHung, WorkerError."""
        for worker in self._workers:
            worker.wire.expect(bounds.GREETINGS, largest_bytes=bounds.GREETING_BYTES)
        return self._collect(Hello, None)

    def replies(self, on_beat: OnBeat | None) -> dict[int, Reply]:
        """Return every rank's reply, in order of arrival.

        When a rank has failed the others get a short grace, so that some replies may be missing.

        Raises WorkerDied, WorkerHung, OutOfMemory (the kernel's counters prove it), or WorkerError
        for a corrupt stream.
        """
        return self._collect(Reply, on_beat)

    def error(self, reply: Reply, failure: Failure) -> LlmperfError:
        """Return the failure of one rank as the class it names.

        A kind that is none of ours becomes WorkerError.
        """
        worker = next(w for w in self._workers if w.rank == reply.rank)
        if is_answer(failure):
            return _noted(_class(failure.kind)(failure.message), failure, worker)
        trace = f"\n{failure.traceback.rstrip()}" if failure.traceback else ""
        return _class(failure.kind)(
            f"{self._who(worker)} failed in {self._what}: {failure.message}{trace}{_tail(worker)}"
        )

    def _collect(self, kind: type[Message], on_beat: OnBeat | None) -> dict[int, Message]:
        messages: dict[int, Message] = {}
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.wire, selectors.EVENT_READ, worker)
            while missing := [w for w in self._workers if w.rank not in messages]:
                if self._is_over(messages, missing):
                    break
                selector.select(min(_TICK_S, self._left_s()))
                for worker in missing:
                    message = self._read(worker, kind, on_beat)
                    if message is not None:
                        messages[worker.rank] = message
                        selector.unregister(worker.wire)
        return messages

    def _left_s(self) -> float:
        return max(0.0, self._end_s - time.monotonic())

    def _read(self, worker: Worker, kind: type[Message], on_beat: OnBeat | None) -> Message | None:
        """Read what has come from one rank, up to a message of the kind that is waited for.

        Raises WorkerDied when the rank is gone.
        """
        exited = worker.exited()
        for _ in range(_MOST_MESSAGES):
            message = self._receive(worker)
            if message is None:
                break
            self._heard_s[worker.rank] = time.monotonic()
            self._require_own_rank(worker, message)
            if isinstance(message, kind):
                return message
            if not isinstance(message, Heartbeat):
                raise WorkerError(
                    f"{self._who(worker)} sent a {type(message).__name__} out of turn."
                    f"{_tail(worker)}"
                )
            if on_beat is not None:
                on_beat(message)
        else:
            return None  # it floods: the deadline is looked at in between
        if exited:
            raise self._died(worker)
        return None

    def _require_own_rank(self, worker: Worker, message: FromWorker) -> None:
        """Raise WorkerError for a message in the name of another rank."""
        if message.rank != worker.rank:
            raise WorkerError(
                f"{self._who(worker)} sent a {type(message).__name__} as rank {message.rank}."
                f"{_tail(worker)}"
            )

    def _receive(self, worker: Worker) -> FromWorker | None:
        try:
            return worker.wire.receive(timeout_s=0)
        except WireClosed as error:
            raise self._died(worker) from error
        except WireError as error:
            raise WorkerError(
                f"{self._who(worker)} sent something that is not a message: {error}{_tail(worker)}"
            ) from error

    def _is_over(self, messages: dict[int, Message], missing: list[Worker]) -> bool:
        """Whether a rank's failure ends the wait for the others.

        Raises WorkerHung when the time is over.
        """
        failures = [
            message.failure
            for message in messages.values()
            if isinstance(message, Reply) and message.failure is not None
        ]
        if failures:
            return self._grace_is_over(failures)
        self._require_life(missing)
        return False

    def _grace_is_over(self, failures: list[Failure]) -> bool:
        now_s = time.monotonic()
        self._grace_end_s = self._grace_end_s or now_s + _grace_s(failures[0])
        if not is_answer(failures[-1]) and not blames_a_peer(failures[-1]):
            return True
        return now_s >= min(self._grace_end_s, self._end_s)

    def _require_life(self, missing: list[Worker]) -> None:
        """Raise WorkerHung when the deadline has passed, or a rank has been silent for too long."""
        now_s = time.monotonic()
        if now_s >= self._end_s:
            raise self._hung(
                missing, f"it gave no answer within its deadline of {self._deadline_s:g} s"
            )
        silent = [w for w in missing if now_s - self._heard_s[w.rank] > self._silence_s]
        if silent:
            raise self._hung(silent, f"it sent no heartbeat for {self._silence_s:g} s")

    def _who(self, worker: Worker) -> str:
        return f"worker rank {worker.rank} of {len(self._workers)} ({worker.where})"

    def _hung(self, workers: list[Worker], why: str) -> WorkerHung:
        stacks = "".join(
            f"\n--- stacks of rank {w.rank} ---\n{w.stacks().rstrip()}" for w in workers
        )
        return WorkerHung(
            f"{self._who(workers[0])} hung in {self._what}: {why}; it was killed. "
            f"Log: {workers[0].log}{stacks}"
        )

    def _died(self, worker: Worker) -> WorkerError:
        if not worker.wait_exited(_EXIT_S):
            return WorkerDied(
                f"{self._who(worker)} closed its connection in {self._what} but did not exit."
                f"{_tail(worker)}"
            )
        how = f"{self._who(worker)} ended by {worker.exit_text()} in {self._what}."
        if worker.exit_code() != -signal.SIGKILL:
            return WorkerDied(how + _tail(worker))
        proof = killed_since(self._oom_before, read_counters())
        if proof is not None:
            return OutOfMemory(f"{how} {proof}{_tail(worker)}")
        return WorkerDied(f"{how} {self._oom_hint()}{_tail(worker)}")

    def _oom_hint(self) -> str:
        counters = (
            f"({', '.join(self._oom_before)}) did not move"
            if self._oom_before
            else "cannot be read here"
        )
        return (
            "A usual cause is the kernel's out-of-memory killer; "
            f"its counters {counters}. Or something else killed it."
        )


def is_answer(failure: Failure) -> bool:
    """Say whether the failure is the engine's answer, after which the worker stays usable."""
    return issubclass(error_class(failure.kind), ANSWERS)


def blames_a_peer(failure: Failure) -> bool:
    """Whether a rank only lost its connection to another one.

    The other one has failed then, and has more to say.
    """
    return not is_answer(failure) and _PEER_LOST.search(failure.message) is not None


def _grace_s(failure: Failure) -> float:
    """Return how long to wait for the other ranks, which may answer alike or be the reason."""
    if is_answer(failure):
        return _GRACE_S
    return _PEER_GRACE_S if blames_a_peer(failure) else 0.0


def _class(kind: str) -> type[LlmperfError]:
    cls = error_class(kind)
    return cls if issubclass(cls, (WorkerError, *ANSWERS)) else WorkerError


def _noted(error: LlmperfError, failure: Failure, worker: Worker) -> LlmperfError:
    if failure.traceback and not isinstance(error, UsageError | NotInEffect):
        error.add_note(f"In the worker (log: {worker.log}):\n{failure.traceback.rstrip()}")
    return error


def _tail(worker: Worker) -> str:
    text = worker.log_tail(_TAIL_LINES)
    return (
        f"\n--- last lines of {worker.log} ---\n{text}"
        if text
        else f"\n(Its log is empty: {worker.log})"
    )
