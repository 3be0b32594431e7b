"""Reference files between this host and those of the ranks, under one path.

Where both see one file nothing is copied.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

CHUNK_BYTES = 16 * 2**20


class Remote(Protocol):
    """Files of the host that a rank is on."""

    def file_size(self, path: str) -> int:
        """Return the bytes of the file there; -1 for none."""

    def read_file(self, path: str, start: int) -> bytes:
        """Return at most CHUNK_BYTES of it from this byte on."""

    def write_file(self, path: str, start: int, data: bytes) -> None:
        """Put these bytes at this place of the file, whose folder is made.

        No data at byte 0 makes the folder alone.
        """


def give(path: str, to: Remote) -> None:
    """Make sure that the host has our file as it is.

    The name of a reference says its content, so that one of the same size is the same file.
    """
    size = Path(path).stat().st_size
    if to.file_size(path) == size:
        return
    with Path(path).open("rb") as file:
        for start in range(0, size, CHUNK_BYTES):
            to.write_file(path, start, file.read(CHUNK_BYTES))


def fetch(path: str, of: Remote) -> None:
    """Make sure that we have the host's file.

    It replaces none of ours, and is whole when it is there.
    """
    target = Path(path)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    size = of.file_size(path)
    with part.open("wb") as file:
        while file.tell() < size:
            file.write(of.read_file(path, file.tell()))
    part.replace(target)
