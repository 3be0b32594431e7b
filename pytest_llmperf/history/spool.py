"""What could not be sent to the store, kept in local files until it can be.

Entries lie in three places, in the order in which they are sent: the file that is being sent, the
file that is added to, and files of one entry each, written where the lock of the second could not
be had. A process that has written one of these goes on so until it was sent, so that its entries
keep their order.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout
from msgspec import Struct

from pytest_llmperf.core import record_json
from pytest_llmperf.core.record import ClaimRecord, Record
from pytest_llmperf.errors import StoreError


class SpoolUnusable(StoreError):
    """The spool's file or its lock cannot be used: another user's, a full disk."""


class SpoolBusy(SpoolUnusable):
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
_BATCH = 64
_BATCH_BYTES = 2**23
_LARGEST_LINE_BYTES = 2**26
"""What is longer is no entry: it is read, and refused, in pieces."""
_GIVE_WAY_S = 0.02
"""Between two batches, so that other writers of the store have their turn."""
_ABSENT = msgspec.Raw(b"")


class _Line(Struct, frozen=True):
    add: msgspec.Raw = _ABSENT
    outcome: msgspec.Raw = _ABSENT


class Spool:
    """Append-only files of entries, shared by processes through lock files.

    Nothing is deleted before it was sent. The lock that `append` takes is held for an instant, also
    while another process sends.
    """

    def __init__(self, path: Path, *, wait_s: float = 5.0) -> None:
        self.path = path
        self.refused_path = path.with_name(f"{path.name}.refused")
        self._sending_path = path.with_name(f"{path.name}.sending")
        self._wait_s = wait_s
        self._own: list[Path] = []
        self._newest_ns = 0

    def append(self, entry: Entry) -> None:
        """Add one entry, durable when this returns.

        Where the spool's file cannot be used, the entry gets a file of its own beside it.

        Raises StoreError if nothing can be written.
        """
        self.check()
        line = _encode(entry)
        self._own = [path for path in self._own if path.exists()]
        if self._own:
            self._write_own(line)
            return
        try:
            with self._locked(self.path):
                _append(self.path, line)
        except SpoolUnusable:
            self._write_own(line)

    def check(self) -> None:
        """Make the spool's folder. Raises StoreError if that cannot be."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failed(error) from error

    @property
    def has_entries(self) -> bool:
        """Whether there is something to send."""
        return self.path.is_file() or self._sending_path.is_file() or bool(self._single_files())

    def pending(self) -> int:
        """Entries that wait, without a lock: for messages."""
        files = (self._sending_path, self.path, *self._single_files())
        return sum(map(_count_lines, files))

    def send(self, deliver: Callable[[Sequence[Entry]], None]) -> tuple[int, list[str]]:
        """Hand every entry to `deliver` in order, some at a time, and remove what was sent.

        Returns how many went, and what was refused and why, or why nothing could be sent.

        `deliver` takes all that it is given, or none and raises. Where it refuses some with a
        ValueError, it gets them one by one. A line that is no entry, or that it refuses alone, goes
        to the `.refused` file beside it. Any other error of `deliver` passes through, and all that
        was not sent stays: sending twice does no harm.
        """
        if not self.has_entries:
            return 0, []
        try:
            with self._locked(self._sending_path):
                return self._send(deliver)
        except SpoolUnusable as unusable:  # most likely another process is sending the same entries
            return 0, [str(unusable)]

    def _send(self, deliver: Callable[[Sequence[Entry]], None]) -> tuple[int, list[str]]:
        sent, notices = self._send_file(self._sending_path, deliver)  # a killed sender's
        single_files = self._single_files()  # listed first: what came before them is in the file
        with self._locked(self.path):
            if self.path.is_file():
                self.path.replace(self._sending_path)
        try:
            for path in (self._sending_path, *single_files):
                n_sent, refused = self._send_file(path, deliver)
                sent, notices = sent + n_sent, notices + refused
        except BaseException:
            self._put_back()
            raise
        return sent, notices

    def _send_file(
        self, path: Path, deliver: Callable[[Sequence[Entry]], None]
    ) -> tuple[int, list[str]]:
        """Send one file and remove it."""
        sent, notices = 0, []
        for lines in _batches(path):
            refused = _deliver(lines, deliver)
            for line, reason in refused:
                _append(self.refused_path, line)
                notices.append(f"{reason} (kept in {self.refused_path})")
            sent += len(lines) - len(refused)
            if len(lines) == _BATCH:
                time.sleep(_GIVE_WAY_S)
        path.unlink(missing_ok=True)
        return sent, notices

    def _put_back(self) -> None:
        """Give the entries their file again, unless others have been added to it since."""
        with contextlib.suppress(SpoolUnusable), self._locked(self.path):
            if self._sending_path.is_file() and not self.path.exists():
                self._sending_path.replace(self.path)

    def _single_files(self) -> list[Path]:
        """Return the files of one entry, the oldest first."""
        return sorted(self.path.parent.glob(f"{self.path.name}.one-*"))

    def _write_own(self, line: bytes) -> None:
        """Write a file of one entry, whole or not at all. Raises StoreError."""
        self._newest_ns = max(self._newest_ns + 1, time.time_ns())  # clocks are set back
        name = f"{self.path.name}.one-{self._newest_ns:020d}-{uuid.uuid4().hex[:8]}"
        unfinished, path = self.path.with_name(f".{name}"), self.path.with_name(name)
        try:
            _append(unfinished, line)
            unfinished.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise self._failed(error) from error
        self._own.append(path)

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        try:
            with FileLock(f"{path}.lock", timeout=self._wait_s):
                yield
        except Timeout as error:
            raise SpoolBusy(
                f"spool {path} was locked by another process for {self._wait_s:g} s."
            ) from error
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> SpoolUnusable:
        return SpoolUnusable(
            f"spool {self.path} cannot be used: {error}. "
            "Free some space or give another --llmperf-store."
        )


def _batches(path: Path) -> Iterator[tuple[bytes, ...]]:
    """Read a file some lines and some bytes at a time; one that is not there has none."""
    batch: list[bytes] = []
    n_bytes = 0
    for line in _lines(path):
        batch.append(line)
        n_bytes += len(line)
        if len(batch) == _BATCH or n_bytes >= _BATCH_BYTES:
            yield tuple(batch)
            batch, n_bytes = [], 0
    if batch:
        yield tuple(batch)


def _lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as file:
            while line := file.readline(_LARGEST_LINE_BYTES):
                if line.strip():
                    yield line.rstrip(b"\n")


def _count_lines(path: Path) -> int:
    try:
        return sum(1 for _ in _lines(path))
    except OSError:
        return 0


def _deliver(
    lines: Sequence[bytes], deliver: Callable[[Sequence[Entry]], None]
) -> list[tuple[bytes, str]]:
    """Deliver lines together; return those that were refused, and why."""
    try:
        deliver([_decode(line) for line in lines])
    except (ValueError, RecursionError):
        reasons = [(line, _deliver_one(line, deliver)) for line in lines]
        return [(line, reason) for line, reason in reasons if reason]
    return []


def _deliver_one(line: bytes, deliver: Callable[[Sequence[Entry]], None]) -> str:
    """Deliver a line; return why it was refused, if it was."""
    try:
        deliver([_decode(line)])
    except (ValueError, RecursionError) as error:
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
