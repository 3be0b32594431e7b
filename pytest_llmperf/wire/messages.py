"""Messages between the pytest process and a worker: msgpack with a length before it, no pickle.

The session sends one command at a time to every rank. A rank answers with exactly one `Reply`, and
sends `Heartbeat`s meanwhile. A reply has the command's own result, or its `failure` is set.
"""

from __future__ import annotations

from msgspec import Struct

from pytest_llmperf.wire.results import Result


class Failure(Struct, frozen=True, kw_only=True):
    """Why a command failed.

    `kind` is a class name of `pytest_llmperf.errors`; unknown kinds become WorkerError.
    """

    kind: str
    message: str
    traceback: str = ""


class Hello(Struct, frozen=True, kw_only=True, tag=True):
    """First message of a worker."""

    rank: int
    pid: int
    python: str


class Heartbeat(Struct, frozen=True, kw_only=True, tag=True):
    """Says what the worker is doing; a thread of the worker sends it every second."""

    rank: int
    doing: str


class Reply(Struct, frozen=True, kw_only=True, tag=True):
    """The one answer to a command."""

    rank: int
    result: Result | None = None
    failure: Failure | None = None


FromWorker = Hello | Heartbeat | Reply
