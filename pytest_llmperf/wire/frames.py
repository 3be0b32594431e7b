"""Messages over a stream socket: 4 bytes of length (big endian), then msgpack.

Imports nothing heavy; both sides use it.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from typing import Generic, TypeVar

import msgspec

from pytest_llmperf.errors import WorkerError
from pytest_llmperf.wire.commands import AnyCommand
from pytest_llmperf.wire.messages import FromWorker

MAX_FRAME_BYTES = 256 * 2**20
_HEADER_BYTES = 4
_CHUNK_BYTES = 2**16

Incoming = TypeVar("Incoming")


class WireError(WorkerError):
    """The bytes that came are no message, or a message cannot be sent."""


class WireClosed(WireError):
    """The other side closed the socket."""


def frame(message: msgspec.Struct) -> bytes:
    """Return the message as it travels.

    Raises WireError when it cannot be encoded or is larger than MAX_FRAME_BYTES.
    """
    try:
        payload = msgspec.msgpack.encode(message)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"a {type(message).__name__} cannot be sent: {error}.") from error
    _check_size(len(payload), f"a {type(message).__name__} cannot be sent", MAX_FRAME_BYTES)
    return len(payload).to_bytes(_HEADER_BYTES, "big") + payload


class Wire(Generic[Incoming]):
    """One end of the connection. Any thread may send (frames never mix); one thread receives."""

    def __init__(self, sock: socket.socket, decoder: msgspec.msgpack.Decoder[Incoming]) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._decoder = decoder
        self._largest_bytes = MAX_FRAME_BYTES
        self._buffer = bytearray()
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """Return the socket's file descriptor, for a selector."""
        return self._socket.fileno()

    def expect(self, decoder: msgspec.msgpack.Decoder[Incoming], *, largest_bytes: int) -> None:
        """Take these messages alone from now on, and none that is larger."""
        self._decoder = decoder
        self._largest_bytes = largest_bytes

    def send(self, message: msgspec.Struct, *, timeout_s: float | None) -> None:
        """Send one message.

        Raises WireError, TimeoutError, or OSError when the other side is gone.
        """
        self.send_frame(frame(message), timeout_s=timeout_s)

    def send_frame(self, data: bytes, *, timeout_s: float | None) -> None:
        """Send what `frame` made.

        After a TimeoutError the stream is cut in a frame and only good for closing.
        """
        end_s = _end(timeout_s)
        rest = memoryview(data)
        with self._sending:
            while rest:
                try:
                    rest = rest[self._socket.send(rest) :]
                except BlockingIOError:
                    if not _wait(self._socket, select.POLLOUT, end_s):
                        raise TimeoutError(
                            f"{len(rest)} of {len(data)} bytes were not taken in {timeout_s} s."
                        ) from None

    def receive(self, *, timeout_s: float | None) -> Incoming | None:
        """Return the next message, or None when `timeout_s` passed without a whole one.

        What came of one is kept for the next call.

        Raises:
            WireClosed: the other side is gone.
            WireError: an impossible length, or bytes that are no message that this side
                understands.

        """
        end_s = _end(timeout_s)
        while (payload := self._next_payload()) is None:
            if not _wait(self._socket, select.POLLIN, end_s):
                return None
            self._fill()
        return self._decode(payload)

    def close(self) -> None:
        """Close the socket; the other side sees the end of the stream."""
        self._socket.close()

    def _next_payload(self) -> bytes | None:
        if len(self._buffer) < _HEADER_BYTES:
            return None
        size = int.from_bytes(self._buffer[:_HEADER_BYTES], "big")
        _check_size(size, "the stream is corrupt", self._largest_bytes)
        end = _HEADER_BYTES + size
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as buffer:
            payload = bytes(buffer[_HEADER_BYTES:end])
        del self._buffer[:end]
        return payload

    def _fill(self) -> None:
        try:
            chunk = self._socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except ConnectionError as error:
            raise WireClosed(f"the connection broke: {error}.") from error
        if not chunk:
            raise WireClosed(f"the other side closed the connection{self._cut()}.")
        self._buffer += chunk

    def _cut(self) -> str:
        """Return that the stream ends within a message, where it does."""
        n_bytes = len(self._buffer)
        return f" in the middle of a message ({n_bytes} bytes of it came)" if n_bytes else ""

    def _decode(self, payload: bytes) -> Incoming:
        try:
            return self._decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            start = payload[:16].hex(" ")
            raise WireError(
                f"a frame of {len(payload)} bytes does not decode: {error}. "
                f"It starts with {start}. Either something else wrote to the socket, "
                "or the two sides run different versions of pytest-llmperf.",
            ) from error


def parent_end(sock: socket.socket) -> Wire[FromWorker]:
    """Return the pytest process's end: it receives Hello, Heartbeat and Reply."""
    return Wire(sock, msgspec.msgpack.Decoder(FromWorker))


def worker_end(sock: socket.socket) -> Wire[AnyCommand]:
    """Return the worker's end: it receives commands."""
    return Wire(sock, msgspec.msgpack.Decoder(AnyCommand))


def _check_size(size: int, what: str, largest_bytes: int) -> None:
    if size > largest_bytes:
        raise WireError(f"{what}: a frame of {size} bytes; the limit is {largest_bytes}.")


def _end(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _wait(sock: socket.socket, event: int, end_s: float | None) -> bool:
    poll = select.poll()
    poll.register(sock, event)
    left_ms = None if end_s is None else max(0.0, (end_s - time.monotonic()) * 1e3)
    return bool(poll.poll(left_ms))
