"""Logs of workers: what is read of them and what is kept is bounded, whatever a worker prints.

While workers run, one thread looks at the sizes of their logs. One that takes too much of the disk
is thinned: its beginning and its end stay, and its middle becomes a hole. Once its worker has
ended, the hole is cut out.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from pytest_llmperf.errors import WorkerError

LARGEST_BYTES = 64 * 2**20
"""A log that takes more is thinned."""
KEPT_BYTES = 2**20
"""What stays of its end."""
HEAD_BYTES = 2**16
"""What stays of its beginning, which often has the reason."""
TAIL_BYTES = 2**16
"""What is read of a log's end for a message."""
STACKS_BYTES = 8 * 2**20
"""How far behind the request the stacks of a worker are looked for in its log."""
KEPT_FILES = 300
"""How many logs of earlier sessions stay in a folder."""
KEPT_FOLDER_BYTES = 256 * 2**20
"""How large they may be together."""

_FREE = "Make it writable, free some space, or name another temporary folder with TMPDIR."
_LOOK_S = 0.25
_BLOCK_BYTES = 512  # of stat(2)
_KEEP_SIZE_AND_PUNCH_HOLE = 0x01 | 0x02  # fallocate(2)
_YOUNG_S = 3600.0  # another session's, which may still run
_STACKS = re.compile(rb"(?:Current thread|Thread) 0x[0-9a-f]+")
_lock = threading.RLock()
_watched: set[Path] = set()
_watchers: list[threading.Thread] = []


def create(path: Path) -> BinaryIO:
    """Open a new log to be written to its end, wherever that is after a cut.

    Nobody else can read it: engines print addresses and prompts. Raises WorkerError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.fdopen(os.open(path, flags, 0o600), "ab")
    except OSError as error:
        raise WorkerError(f"a worker's log cannot be written: {error}. {_FREE}") from error


def usable(wanted: Path) -> Path:
    """Return the folder for logs, made where it is missing.

    Where it cannot be written (a read-only project, another user's folder) that is one of this
    user's in the temporary folder. Raises WorkerError where that cannot be written either.
    """
    refusal = _refusal(wanted)
    if not refusal:
        return wanted
    try:
        own = _own_folder()
    except OSError as error:
        raise WorkerError(f"workers' logs can be written nowhere: {error}. {_FREE}") from error
    if own_refusal := _refusal(own):
        raise WorkerError(
            f"workers' logs can be written nowhere: {refusal}; {own_refusal}. {_FREE}"
        )
    return own


def _own_folder() -> Path:
    """Return this user's folder in the temporary one, where others can make folders too.

    Raises OSError where it is somebody else's.
    """
    folder = Path(tempfile.gettempdir()) / f"llmperf-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "not a folder of this user", str(folder))
    return folder / "logs"


def _refusal(folder: Path) -> str:
    """Return why no file can be written in a folder, which is made where it is missing."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return str(error)


def watch(path: Path) -> None:
    """Keep a log from growing without bound, until `unwatch`."""
    with _lock:
        _watched.add(path)
        if not any(thread.is_alive() for thread in _watchers):
            _watchers[:] = [threading.Thread(target=_look, name="llmperf-logs", daemon=True)]
            _watchers[0].start()


def unwatch(path: Path) -> None:
    """Cut a log for the last time: its worker has ended."""
    with _lock:
        _watched.discard(path)
        cut(path)


def thin(path: Path) -> None:
    """Free the middle of a log that takes too much, while its worker writes to its end.

    One that is not there, or not ours to write, stays as it is.
    """
    with _lock, contextlib.suppress(OSError):
        if path.stat().st_blocks * _BLOCK_BYTES > LARGEST_BYTES:
            _opened(path, _free_middle)


def cut(path: Path) -> None:
    """Cut the middle out of a log that is too large, once nobody writes to it."""
    with _lock, contextlib.suppress(OSError):
        if path.stat().st_size > LARGEST_BYTES:
            _opened(path, _cut_middle)


def _opened(path: Path, shorten: Callable[[int], None]) -> None:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    try:
        shorten(fd)
    finally:
        os.close(fd)


def _free_middle(fd: int) -> None:
    """Make a hole of the middle; where the file system has none, cut it out.

    What is written just then can be lost in that case.
    """
    n_bytes = os.fstat(fd).st_size - KEPT_BYTES - HEAD_BYTES
    if not _make_hole(fd, HEAD_BYTES, n_bytes):
        _cut_middle(fd)


def _make_hole(fd: int, start: int, n_bytes: int) -> bool:
    """Return whether the system could give these bytes of a file back."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    place, length = ctypes.c_int64(start), ctypes.c_int64(n_bytes)
    return bool(libc.fallocate64(fd, _KEEP_SIZE_AND_PUNCH_HOLE, place, length) == 0)


def _cut_middle(fd: int) -> None:
    size = os.fstat(fd).st_size
    end = os.pread(fd, KEPT_BYTES, size - KEPT_BYTES)
    n_bytes = size - HEAD_BYTES - len(end)
    os.ftruncate(fd, HEAD_BYTES)
    os.write(fd, b"\n[llmperf: %d bytes of this log were cut out here]\n" % n_bytes + end)


def _look() -> None:
    """Cut what is too large, as long as there is a log to watch."""
    while True:
        time.sleep(_LOOK_S)
        with _lock:
            if not _watched:
                _watchers.clear()
                return
            for path in _watched:
                thin(path)


@contextlib.contextmanager
def uncut() -> Iterator[None]:
    """Keep all logs as they are: places in them stay what they are."""
    with _lock:
        yield


def size(path: Path) -> int:
    """Return the size of a log in bytes; 0 where it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read(path: Path, start: int, n_bytes: int) -> bytes:
    """Return at most `n_bytes` of a log from a place on; nothing where it is gone."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(n_bytes)
    except OSError:
        return b""


def tail(path: Path, lines: int) -> str:
    """Return the last lines of a log, at most `TAIL_BYTES` of them."""
    with uncut():
        content = read(path, max(0, size(path) - TAIL_BYTES), TAIL_BYTES)
    return "\n".join(content.decode("utf-8", "replace").splitlines()[-lines:])


def stacks(path: Path, start: int) -> str:
    """Return the stacks that were written to a log behind a place, at most `TAIL_BYTES`.

    Where none are found among what a worker prints besides, that is returned.
    """
    content = read(path, start, STACKS_BYTES)
    match = _STACKS.search(content)
    first = match.start() if match else 0
    return content[first : first + TAIL_BYTES].decode("utf-8", "replace")


def prune(folder: Path) -> None:
    """Remove the oldest logs of earlier sessions, down to `KEPT_FILES` and `KEPT_FOLDER_BYTES`."""
    oldest_s, n_bytes = time.time() - _YOUNG_S, 0
    for number, (modified_s, n_bytes_of_file, path) in enumerate(_newest_first(folder)):
        n_bytes += n_bytes_of_file
        too_many = number >= KEPT_FILES or n_bytes > KEPT_FOLDER_BYTES
        if too_many and modified_s < oldest_s:
            with contextlib.suppress(OSError):
                path.unlink()


def _newest_first(folder: Path) -> list[tuple[float, int, Path]]:
    """Return when each log was written last, its size and its path."""
    rows = []
    for path in folder.glob("*-rank*.log"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            rows.append((status.st_mtime, status.st_size, path))
    return sorted(rows, reverse=True)


# A forked child has no watching thread, and must not inherit a lock that the thread holds.
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)
