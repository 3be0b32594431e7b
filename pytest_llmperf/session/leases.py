"""One measurement at a time on a device, across all sessions and pytest-xdist workers of this user on this host."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_llmperf.errors import DeviceBusy

_POLL_S = 0.1
_locks: dict[Path, FileLock] = {}
_locks_guard = threading.Lock()


def default_directory() -> Path:
    """The user's lease directory on this host; every session finds the same one, whatever project it tests."""
    return Path(tempfile.gettempdir()) / f"llmperf-{os.getuid()}"


@contextlib.contextmanager
def exclusive(
    device: str, *, timeout_s: float, directory: Path | None = None, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold `device` (any name: "cpu", "cuda:0", a UUID) alone on this host.

    Taken again inside the same process it is held until the outermost leaves. A holder that died holds nothing.
    `on_wait` is told once who holds the device, when it is not free.

    Raises:
        DeviceBusy: still held by another process after `timeout_s`, or the directory cannot be used.
    """
    path = _usable(directory or default_directory()) / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', device)}.lock"
    lock = _lock(path)
    _acquire(lock, device, path, timeout_s, on_wait)
    try:
        yield
    finally:
        _release(lock, path)


def _lock(path: Path) -> FileLock:
    with _locks_guard:
        return _locks.setdefault(path, FileLock(path, thread_local=False))


def _acquire(lock: FileLock, device: str, path: Path, timeout_s: float, on_wait: Callable[[str], None] | None) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if on_wait is not None:
            on_wait(_holder(path))
        _wait(lock, device, path, timeout_s)
    if lock.lock_counter == 1:
        _write_holder(path)


def _wait(lock: FileLock, device: str, path: Path, timeout_s: float) -> None:
    try:
        lock.acquire(timeout=timeout_s, poll_interval=_POLL_S)
    except Timeout as error:
        raise DeviceBusy(
            f"{device} is in use: {_holder(path)} measures on it and did not finish within {timeout_s:g} s. "
            f"Let it finish or end it, then run again. (Lock: {path})"
        ) from error


def _release(lock: FileLock, path: Path) -> None:
    if lock.lock_counter == 1:
        _sidecar(path).unlink(missing_ok=True)
    lock.release()


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _write_holder(path: Path) -> None:
    holder = {"pid": os.getpid(), "since_unix_s": time.time(), "command": " ".join(sys.argv)[:200]}
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_text(json.dumps(holder), encoding="utf-8")
    fresh.replace(_sidecar(path))


def _holder(path: Path) -> str:
    try:
        holder = json.loads(_sidecar(path).read_text(encoding="utf-8"))
        return f"process {holder['pid']} ({holder['command']!r}, for {time.time() - holder['since_unix_s']:.0f} s)"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that left no name"


def _usable(directory: Path) -> Path:
    """The directory, made when missing. Refuses one that another user could have planted in the shared temporary folder."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise DeviceBusy(f"the lease directory {str(directory)!r} cannot be made: {error}. Set TMPDIR.") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise DeviceBusy(f"the lease directory {str(directory)!r} is not a folder of this user. Remove it, or set TMPDIR.")
    return directory
