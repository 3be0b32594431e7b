"""A load that a generator is to put on a server, and the files it is written to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmperf.workloads import Serve


@dataclass(frozen=True, kw_only=True)
class Job:
    """A load for a generator.

    `bodies` are the requests as our own client would send them, `due_s` when (open loop).
    `tokenizer` is a folder, or None. `program` is the generator's command; `folder` is empty, and
    its own.
    """

    work: Serve
    base: str
    path: str
    model: str
    api_key: str
    bodies: tuple[bytes, ...]
    due_s: tuple[float, ...]
    tokenizer: Path | None
    program: Path
    folder: Path

    @property
    def secret_file(self) -> Path:
        """What a generator reads the key from. It is removed when the program has ended."""
        return self.folder / "config.json"


def json_lines(rows: Sequence[Any]) -> bytes:
    """Return values as JSON, one a line."""
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def write_private(file: Path, content: bytes) -> None:
    """Write a new file that nobody else can read. Raises OSError."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as stream:
        stream.write(content)
