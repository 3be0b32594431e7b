"""What a worker may send at most while it answers a command, so that no worker fills our memory.

A message in memory takes many times its bytes on the wire: small bounds, and a decoder that takes
the command's own result alone, keep that below `docs/security.md`'s promise.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from pytest_llmperf.wire.commands import (
    AnswerTasks,
    Command,
    CompareReference,
    ReadTopTokens,
    Run,
    RunBody,
    RunServing,
    result_type,
)
from pytest_llmperf.wire.frames import MAX_FRAME_BYTES
from pytest_llmperf.wire.messages import Failure, FromWorker, Heartbeat, Hello, Reply
from pytest_llmperf.workloads import Batch, Serve, Workload

GREETING_BYTES = 2**16
SMALL_BYTES = 2**21
"""Of a message that grows with nothing that the session asked for."""
TABLE_BYTES = 2**23
"""Of a message that has a row for each prompt or item."""
GREETINGS: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(Hello | Heartbeat)
A_TOKEN_BYTES = 64
A_REQUEST_BYTES = 2**13
BUSIEST_TOK_PER_S = 5000
"""Of a line of a closed loop that is bounded by its duration alone."""


def largest_bytes(command: Command[Any]) -> int:
    """Return how large a message may be while a worker answers a command."""
    if isinstance(command, RunBody):  # the user's own code: reports with all that it printed
        return MAX_FRAME_BYTES
    if isinstance(command, Run | RunServing):
        return min(MAX_FRAME_BYTES, SMALL_BYTES + _run_bytes(command.workload))
    if isinstance(command, CompareReference | AnswerTasks | ReadTopTokens):
        return TABLE_BYTES
    return SMALL_BYTES


def _run_bytes(work: Workload | Serve) -> int:
    if isinstance(work, Serve):
        return _serving_bytes(work)
    if isinstance(work, Batch):
        return work.count * (A_REQUEST_BYTES + A_TOKEN_BYTES * _largest(work.max_new_tokens))
    return work.batch * (A_REQUEST_BYTES + A_TOKEN_BYTES * work.new_tokens)


def _serving_bytes(work: Serve) -> int:
    if work.requests is None and work.concurrency is not None:
        n_tokens = int(work.concurrency * (work.duration or 0) * BUSIEST_TOK_PER_S)
        return n_tokens * A_TOKEN_BYTES
    n_requests = work.requests if work.requests is not None else len(work.due_s())
    recorded = work.traffic.output_tokens if work.traffic is not None else ()
    n_tokens = max((work.max_new_tokens, *recorded))
    return n_requests * (A_REQUEST_BYTES + A_TOKEN_BYTES * n_tokens)


def _largest(tokens: int | tuple[int, int]) -> int:
    return tokens if isinstance(tokens, int) else tokens[1]


@cache
def decoder(command: type[Command[Any]]) -> msgspec.msgpack.Decoder[Any]:
    """Return what reads a worker's messages while it answers a command of this type."""
    reply = msgspec.defstruct(
        "Reply",
        [
            ("rank", int),
            ("result", result_type(command) | None, None),
            ("failure", Failure | None, None),
        ],
        bases=(Reply,),
        tag="Reply",
        frozen=True,
        kw_only=True,
    )
    return msgspec.msgpack.Decoder(Hello | Heartbeat | reply)
