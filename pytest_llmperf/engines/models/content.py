"""What a model's weights are, as a hash; and where converted models and hashes are cached.

No torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from pytest_llmperf.cache_folder import cache_dir

_CHUNK_BYTES = 1 << 22
_SHA256 = re.compile(r"[0-9a-f]{64}")


def hash_files(files: Iterable[Path]) -> str:
    """Return the SHA-256 over the names and contents of `files`, whatever folder they lie in."""
    hashes = sorted((file.name, file_sha256(file)) for file in files)
    return hash_value(dict(hashes))


def hash_value(value: Mapping[str, object]) -> str:
    """Return the SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content.

    Kept in the cache by path, size, times and place on the disk: weights are read once. A copy that
    keeps the time of change has another time of its status.
    """
    stat = file.stat()
    key = {
        "path": str(file.resolve()),
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }
    return cached_hash(hash_value(key), lambda: _digest(file))


def cached_hash(key: str, make: Callable[[], str]) -> str:
    """Return the SHA-256 that the cache holds for `key`, a name of a file; else make and keep it.

    `make` returns 64 hexadecimal digits.
    """
    entry = cache_dir() / "hashes" / key
    try:
        cached = entry.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        cached = ""
    if _SHA256.fullmatch(cached):  # a full disk leaves less
        return cached
    digest = make()
    _write_entry(entry, digest)
    return digest


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _write_entry(entry: Path, text: str) -> None:
    """Write the entry whole or not at all. A cache that cannot be written only costs time."""
    part = entry.with_suffix(f".{os.getpid()}")
    try:
        _write_and_rename(part, entry, text)
    except OSError:
        with suppress(OSError):
            part.unlink()


def _write_and_rename(part: Path, entry: Path, text: str) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(text)
    part.replace(entry)
