"""Records as JSON lines: one record a line, appended by any number of processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_llmperf.core import record_json
from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import StoreError


@dataclass(frozen=True, kw_only=True)
class BadLine:
    """A line that is no record: half-written, of a newer version, or something else."""

    path: Path
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: skipped, {self.reason}"


class JsonLines:
    """Appends records to a file.

    When `append` returns, the operating system has the record: a crash of this process loses none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None

    def append(self, record: Record) -> None:
        """Write one line in a single write at the file's end: lines of several processes never mix.

        Raises:
            StoreError: the file cannot be written. A half-written line is closed by the next append
                and skipped by `read`.
        """
        try:
            line = self._missing_line_break() + record_json.encode(record) + b"\n"
            written = os.write(self._open(), line)
        except OSError as error:
            raise StoreError(f"JSON lines file {self.path} cannot be written: {error}.") from error
        if written < len(line):
            raise StoreError(
                f"JSON lines file {self.path}: only {written} of {len(line)} bytes were written. "
                "Is the disk full?"
            )

    def open(self) -> None:
        """Open the file, and make it where it is not there. Raises StoreError."""
        try:
            self._open()
        except OSError as error:
            raise StoreError(f"JSON lines file {self.path} cannot be written: {error}.") from error

    def close(self) -> None:
        """Close the file; a later append opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
            )
        return self._descriptor

    def _missing_line_break(self) -> bytes:
        """Return a line break if the last line was cut off.

        Two processes may both add it: `read` skips blank lines.
        """
        descriptor = self._open()
        size = os.fstat(descriptor).st_size
        is_cut_off = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        return b"\n" if is_cut_off else b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def start_anew(path: Path) -> None:
    """Remove the lines of an earlier session. What cannot be removed is an error of `open`."""
    with suppress(OSError):
        if path.is_file():
            path.unlink()


def read(path: str | Path) -> Iterator[Record | BadLine]:
    """Yield the file's records in order, and a `BadLine` in place of each line that is none.

    Raises StoreError if it cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as lines:
            yield from (
                _parse(path, number, line)
                for number, line in enumerate(lines, start=1)
                if line.strip()
            )
    except OSError as error:
        raise StoreError(f"JSON lines file {path} cannot be read: {error}.") from error


def _parse(path: Path, number: int, line: bytes) -> Record | BadLine:
    try:
        return record_json.decode(line)
    except record_json.NewerSchema as error:
        return BadLine(path=path, number=number, reason=str(error))
    except ValueError as error:
        half = "" if line.endswith(b"\n") else "half-written: "
        return BadLine(path=path, number=number, reason=f"{half}{error}")
