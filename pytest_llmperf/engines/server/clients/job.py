"""What a client process is told and gives back: values, as bytes with their length first."""

from __future__ import annotations

from msgspec import Struct

from pytest_llmperf.engines.server.stream import Answer

LENGTH_BYTES = 8
READY = b"ready"


class Planned(Struct, frozen=True, kw_only=True):
    """One request: its number in the load, what is sent, and when it is due (open loops), in s."""

    index: int
    body: bytes
    n_prompt_tokens: int | None
    n_output_tokens: int
    exact_prompt: bool
    due_s: float = 0.0


class ClientJob(Struct, frozen=True, kw_only=True):
    """The part of a load that one process sends; `lines` is 0 for an open loop."""

    url: str
    headers: dict[str, str]
    protocol: str
    timeout_s: float
    ca_file: str
    planned: tuple[Planned, ...]
    lines: int = 0


class Sent(Struct, frozen=True, kw_only=True):
    """One request as it went; times in ns of the host's monotonic clock, as everywhere."""

    index: int
    due_ns: int
    sent_ns: int
    end_ns: int
    failure: str | None
    answer: Answer | None


class ClientDone(Struct, frozen=True, kw_only=True):
    """What one process did: its requests, how late its timers rang, and how busy it was."""

    sent: tuple[Sent, ...]
    loop_lag_s: tuple[float, ...]
    busy_share: float


def with_length(data: bytes) -> bytes:
    """Return bytes with their length before them."""
    return len(data).to_bytes(LENGTH_BYTES, "big") + data
