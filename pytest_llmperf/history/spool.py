"""What could not be sent to the store, kept in a local file until a later session sends it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout
from msgspec import Struct

from pytest_llmperf.core import record_json
from pytest_llmperf.core.record import ClaimRecord, Record
from pytest_llmperf.errors import StoreError


class SpoolBusy(StoreError):
    """Another process holds the spool."""


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a record that was stored before its test ended.

    `agreement` None leaves the stored one; `extra` adds.
    """

    id: str
    outcome: str
    claims: tuple[ClaimRecord, ...]
    agreement: dict[str, Any] | None = None
    extra: dict[str, Any] = {}


Entry = Record | Outcome


_APPEND_OR_CREATE = os.O_RDWR | os.O_CREAT | os.O_APPEND
_ABSENT = msgspec.Raw(b"")


class _Line(Struct, frozen=True):
    add: msgspec.Raw = _ABSENT
    outcome: msgspec.Raw = _ABSENT


class Spool:
    """An append-only file of entries, shared by processes through a lock file.

    Nothing is deleted before it was sent.
    """

    def __init__(self, path: Path, *, wait_s: float = 30.0) -> None:
        self.path = path
        self.refused_path = path.with_name(f"{path.name}.refused")
        self._wait_s = wait_s

    def append(self, entry: Entry) -> None:
        """Add one entry, durable when this returns. Raises StoreError if it cannot be written."""
        self.check()
        with self._locked():
            _append(self.path, _encode(entry))

    def check(self) -> None:
        """Make the spool's folder. Raises StoreError if that cannot be."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failed(error) from error

    def pending(self) -> int:
        """Entries that wait, without a lock: for messages."""
        try:
            return sum(1 for line in self.path.read_bytes().split(b"\n") if line.strip())
        except OSError:
            return 0

    def send(self, deliver: Callable[[Entry], None]) -> tuple[int, list[str]]:
        """Hand every entry to `deliver` in order, then empty the file.

        Returns how many went, and what was refused and why.

        A line that is no entry, or that `deliver` refuses with a ValueError, goes to the `.refused`
        file beside it. Any other error of `deliver` passes through and leaves the file as it is:
        sending twice does no harm.
        """
        if not self.path.is_file():
            return 0, []
        try:
            with self._locked():
                return self._send(deliver)
        except SpoolBusy as busy:  # most likely another process is sending the same entries
            return 0, [str(busy)]

    def _send(self, deliver: Callable[[Entry], None]) -> tuple[int, list[str]]:
        lines = self._read()
        refused = [(line, reason) for line in lines if (reason := _deliver(line, deliver))]
        for line, _ in refused:
            _append(self.refused_path, line)
        self.path.unlink(missing_ok=True)
        notices = [f"{reason} (kept in {self.refused_path})" for _, reason in refused]
        return len(lines) - len(refused), notices

    def _read(self) -> list[bytes]:
        if not self.path.is_file():
            return []
        return [line for line in self.path.read_bytes().split(b"\n") if line.strip()]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with FileLock(f"{self.path}.lock", timeout=self._wait_s):
                yield
        except Timeout as error:
            raise SpoolBusy(
                f"spool {self.path} was locked by another process for {self._wait_s:g} s."
            ) from error
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(
            f"spool {self.path} cannot be used: {error}. "
            "Free some space or give another --llmperf-store."
        )


def _deliver(line: bytes, deliver: Callable[[Entry], None]) -> str:
    try:
        deliver(_decode(line))
    except ValueError as error:
        return f"spooled line {line[:60].decode('utf-8', 'replace')!r} was refused: {error}"
    return ""


def _encode(entry: Entry) -> bytes:
    kind = b"add" if isinstance(entry, Record) else b"outcome"
    return b'{"%s":%s}' % (kind, record_json.encode(entry))


def _decode(line: bytes) -> Entry:
    parts = msgspec.json.decode(line, type=_Line)
    if bytes(parts.add):
        return record_json.decode(bytes(parts.add))
    if bytes(parts.outcome):
        return msgspec.json.decode(bytes(parts.outcome), type=Outcome, strict=False)
    raise ValueError("neither a record nor an outcome")


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, _APPEND_OR_CREATE, 0o644)
    try:
        _write_line(descriptor, line)
    finally:
        os.close(descriptor)


def _write_line(descriptor: int, line: bytes) -> None:
    """Write a line of its own to the end of the file, and wait until it is on the disk."""
    start = b"\n" if _is_torn(descriptor) else b""
    _write_all(descriptor, start + line + b"\n")
    os.fsync(descriptor)


def _is_torn(descriptor: int) -> bool:
    """Whether the last line was cut off (a killed writer, a full disk)."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
