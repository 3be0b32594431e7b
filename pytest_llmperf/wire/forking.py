"""Messages between a session and a fork server: one JSON text a packet, answered before the next.

A `Fork` carries two file descriptors: the worker's end of its socket, and its log.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

MAX_PACKET_BYTES = 2**17


class Fork(Struct, frozen=True, kw_only=True, tag=True):
    """Start a worker: a fork of the server that has imported this engine.

    `environment` is set in the worker; a value of None takes the variable away.
    """

    engine: str
    rank: int
    token: str
    environment: dict[str, str | None]


class AskStatus(Struct, frozen=True, kw_only=True, tag=True):
    """Ask how a worker ended. With `reap`, its process id is given back to the system, too."""

    pid: int
    reap: bool


class Forked(Struct, frozen=True, kw_only=True, tag=True):
    """The worker runs under this process id."""

    pid: int


class Refused(Struct, frozen=True, kw_only=True, tag=True):
    """No worker was forked.

    `learned` says that the server had imported more than the engine by itself, what its earlier
    workers had needed: a new server may do better.
    """

    reason: str
    learned: bool = False


class Status(Struct, frozen=True, kw_only=True, tag=True):
    """The exit code as subprocess reports it; None while the worker runs, or if it is unknown."""

    exit_code: int | None


Request = Fork | AskStatus
Answer = Forked | Refused | Status

REQUESTS = msgspec.json.Decoder(Request)
ANSWERS: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
