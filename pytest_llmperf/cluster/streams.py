"""Bytes carried between a rank's socket in the session and the actor beside the rank."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass
from typing import Any

_READ_S = 20.0
_CHUNK_BYTES = 2**20


@dataclass(frozen=True, eq=False)
class Carrier:
    """Carries one rank's bytes both ways, each in a thread of its own."""

    ray: Any
    stream: socket.socket
    host: Any
    model: str

    def start(self) -> None:
        """Carry until one end closes."""
        for carry in (self._to_rank, self._to_session):
            threading.Thread(target=carry, daemon=True).start()

    def _to_rank(self) -> None:
        """Carry from the session to the rank, until the session closes its end."""
        with contextlib.suppress(OSError, self.ray.exceptions.RayError):
            while data := self.stream.recv(_CHUNK_BYTES):
                self.ray.get(self.host.write.remote(self.model, data), timeout=None)

    def _to_session(self) -> None:
        """Carry from the rank to the session, until the rank closes its end or its host is gone.

        Then the session's end is closed.
        """
        with contextlib.suppress(OSError, self.ray.exceptions.RayError):
            while (data := self._from_rank()) != b"":
                self.stream.sendall(data or b"")
        with contextlib.suppress(OSError):
            self.stream.shutdown(socket.SHUT_RDWR)
        self.stream.close()

    def _from_rank(self) -> bytes | None:
        """Return what the rank has sent; None for nothing yet, no bytes for a closed end."""
        data: bytes | None = self.ray.get(self.host.read.remote(self.model, _READ_S), timeout=None)
        return data
