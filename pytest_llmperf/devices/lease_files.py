"""The files of the lease queue: its lock, and one ticket a request.

A ticket is made whole or not at all. What another process, version or user left in the folder is
read as hostile: what is no ticket is passed over, and a living ticket that cannot be read is
reported as one that holds all. Each function runs under the lock of the queue, but for `queue`
itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from pytest_llmperf.devices.lease_queue import WHOLE, Ticket
from pytest_llmperf.errors import DeviceBusy
from pytest_llmperf.processes import process_state

QUEUE_S = 5.0
"""How long the queue's lock is waited for where the user would wait for less.

A living process holds it for well under a millisecond.
"""

_SUFFIX = ".ticket"
_UNFINISHED = ".new"
_NUMBER = re.compile(r"\d{1,18}")
_POLL_S = (0.001, 0.02)
_LARGEST_BYTES = 2**20
_MODE = 0o600
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_open_fds: set[int] = set()


@contextlib.contextmanager
def queue(folder: Path, end_s: float) -> Iterator[None]:
    """Be alone with the tickets, for well under a millisecond.

    The lock is waited for until `end_s` of the monotonic clock, but for `QUEUE_S` at least.

    Raises:
        DeviceBusy: another process kept the lock, or a file of the folder cannot be used.
    """
    path = folder / "queue.lock"
    with _explained(path):
        fd = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        _lock(fd, path, max(end_s, time.monotonic() + QUEUE_S))
        with _explained(folder):
            yield
    finally:
        close(fd)


def tickets(folder: Path, own: Ticket | None, devices: Mapping[str, float]) -> list[Ticket]:
    """Return every living ticket but our own. Those of dead processes are removed.

    One that cannot be read counts as one that holds each of `devices`.
    """
    living = [_read(path, devices) for path in _paths(folder) if not _is_of(own, path)]
    return [ticket for ticket in living if ticket is not None]


def make(folder: Path, ticket: Ticket) -> int:
    """Put a ticket in the place of what had its number. Returns the descriptor that keeps it alive.

    Raises OSError, and leaves the folder as it was.
    """
    unfinished = folder / f"{os.getpid()}{_UNFINISHED}"
    with contextlib.suppress(FileNotFoundError):  # another process of that id was killed here
        unfinished.unlink()
    fd = _open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write_all(fd, msgspec.json.encode(ticket))
        unfinished.replace(_path(folder, ticket.number))
    except BaseException:
        close(fd)
        unfinished.unlink(missing_ok=True)
        raise
    return fd


def remove(folder: Path, ticket: Ticket) -> None:
    """Remove a ticket's file."""
    _path(folder, ticket.number).unlink(missing_ok=True)


def close(fd: int) -> None:
    """Close a descriptor of `make`: the ticket holds nothing from now on."""
    _open_fds.discard(fd)
    os.close(fd)


def forget() -> None:
    """Drop the parent's descriptors in a forked child: its tickets must not live on with it."""
    for fd in _open_fds:
        os.close(fd)
    _open_fds.clear()


def _lock(fd: int, path: Path, end_s: float) -> None:
    poll_s = _POLL_S[0]
    while not _try_to_lock(fd):
        if time.monotonic() >= end_s:
            raise DeviceBusy(_locked_text(fd, path))
        time.sleep(poll_s)
        poll_s = min(2 * poll_s, _POLL_S[1])


def _locked_text(fd: int, path: Path) -> str:
    pid = _locker(fd)
    if not pid:
        return f"the queue of leases, {str(path)!r}, is locked by a process that cannot be told."
    stopped = process_state(pid) in {"T", "t"}
    advice = "Continue it (kill -CONT) or end it." if stopped else "Let it finish or end it."
    state = "stopped" if stopped else "running"
    return f"the queue of leases, {str(path)!r}, is locked by process {pid} ({state}). {advice}"


def _locker(fd: int) -> int:
    """Return which process locks a file, as far as the kernel shows it; 0 where it does not."""
    inode = os.fstat(fd).st_ino
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()
            is_flock = len(words) > 5 and words[1] == "FLOCK"  # noqa: PLR2004 - see proc_locks(5)
            if is_flock and words[5].rpartition(":")[2] == str(inode):
                return max(0, int(words[4]))
    return 0


def _paths(folder: Path) -> list[Path]:
    """Return what is named as a ticket is."""
    return [path for path in folder.glob(f"*{_SUFFIX}") if _NUMBER.fullmatch(path.stem)]


def _is_of(own: Ticket | None, path: Path) -> bool:
    return own is not None and int(path.stem) == own.number


def _read(path: Path, devices: Mapping[str, float]) -> Ticket | None:
    """Return a living ticket; None for one of a dead process, which is removed, and for no ticket.

    Nothing but a file of this user's can be one. An empty one was never made, so it holds nothing.
    """
    try:
        fd = _open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return _living(fd, path, devices) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        close(fd)


def _living(fd: int, path: Path, devices: Mapping[str, float]) -> Ticket | None:
    if _try_to_lock(fd):  # its process is gone
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    content = os.pread(fd, _LARGEST_BYTES, 0)
    return (_decoded(content, path) or _unreadable(fd, path, devices)) if content else None


def _decoded(content: bytes, path: Path) -> Ticket | None:
    """Return the ticket, under the number of its file; None where it makes no sense."""
    try:
        ticket = msgspec.json.decode(content, type=Ticket)
    except (ValueError, RecursionError):
        return None
    is_sound = all(0 <= share <= WHOLE for share in ticket.wants.values())
    if not is_sound or not set(ticket.holds) <= ticket.wants.keys():
        return None
    return msgspec.structs.replace(ticket, number=int(path.stem))


def _unreadable(fd: int, path: Path, devices: Mapping[str, float]) -> Ticket:
    """Return a ticket that stands for one of which nothing is known but that its process lives."""
    return Ticket(
        number=int(path.stem),
        wants=dict.fromkeys(devices, WHOLE),
        n=len(devices),
        pid=_locker(fd),
        command=f"whose ticket {path} cannot be read",
        since_unix_s=os.fstat(fd).st_mtime,
        holds=tuple(devices),
    )


def _try_to_lock(fd: int) -> bool:
    """Lock a file; return whether it was free."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:012d}{_SUFFIX}"


def _open(path: Path, flags: int) -> int:
    fd = os.open(path, flags | _FLAGS, _MODE)
    _open_fds.add(fd)
    return fd


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the system's errors into DeviceBusy."""
    try:
        yield
    except OSError as error:
        raise DeviceBusy(
            f"the queue of leases, {str(path)!r}, cannot be used: {error}. "
            "Free some space there, or set TMPDIR."
        ) from error
