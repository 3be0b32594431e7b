"""Devices are leased: alone, or a share of one.

Across all sessions and pytest-xdist workers of this user on this host.

One file a ticket, locked (flock) by the process that made it, so that a ticket dies with its
process whatever ends that. Tickets are read and written under the lock of the queue; who is served
next is decided in `lease_queue`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec

from pytest_llmperf.devices.lease_queue import WHOLE, Ticket, granted, in_the_way, longest_wait_s
from pytest_llmperf.errors import DeviceBusy

# From, up to: hand-overs between short commands are quick, long waits cost nothing.
_POLL_S = (0.002, 0.05)
_SUFFIX = ".ticket"
_open_fds: set[int] = set()
_exclusive: dict[tuple[Path, str], _Entered] = {}
_entering: defaultdict[tuple[Path, str], threading.Lock] = defaultdict(threading.Lock)


@dataclass
class _Entered:
    lease: Lease
    times: int = 1


@dataclass(eq=False)
class Lease:
    """Devices that this process holds, in the order in which they were asked for, until `release`."""

    devices: tuple[str, ...]
    _directory: Path
    _ticket: Ticket = field(repr=False)
    _fd: int = field(repr=False)
    _owner_pid: int = field(default_factory=os.getpid, repr=False)

    def release(self) -> None:
        """Give all devices back. May be called again; in a forked child it does nothing."""
        if self._fd < 0 or self._owner_pid != os.getpid():
            return
        with _queue(self._directory):
            _path(self._directory, self._ticket.number).unlink(missing_ok=True)
            _close(self._fd)
        self._fd = -1

    def wanted_since_s(self) -> float:
        """How long somebody else has been waiting for one of the devices; 0 when nobody does."""
        with _queue(self._directory):
            tickets = _tickets(self._directory, self._ticket)
        return longest_wait_s(tickets, self.devices, time.time())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def default_directory() -> Path:
    """The user's lease directory on this host.

    Every session finds the same one, whatever project it tests.
    """
    return Path(tempfile.gettempdir()) / f"llmperf-{os.getuid()}"


def lease(
    wants: Mapping[str, float],
    n: int = 1,
    *,
    timeout_s: float,
    directory: Path | None = None,
    on_wait: Callable[[str], None] | None = None,
    names: Mapping[str, str] | None = None,
) -> Lease:
    """Take `n` devices, all at once, out of those in `wants` (device -> share of it.

    1 to have it alone).

    Requests are served in the order in which they came. `on_wait` is told once who is in the way.
    `names` says what devices are called in messages. A process that holds a lease and asks for more
    can wait for itself: give back first.

    Raises:
        DeviceBusy: not served within `timeout_s`, or the directory cannot be used. The message
            names who is in the way.
    """
    if not 1 <= n <= len(wants):
        raise ValueError(f"{n} devices out of {len(wants)} cannot be leased")
    folder = _usable(directory or default_directory())
    ticket, fd = _join(folder, wants, n)
    try:
        held = _wait(folder, ticket, fd, timeout_s, on_wait, names or {})
    except BaseException:
        Lease((), folder, ticket, fd).release()
        raise
    return Lease(held.holds, folder, held, fd)


@contextlib.contextmanager
def exclusive(
    device: str,
    *,
    timeout_s: float,
    directory: Path | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold `device` (any name: "cpu", a UUID) alone on this host.

    Taken again inside the same process it is held until the outermost leaves. Raises as `lease`.
    """
    key = (directory or default_directory(), device)
    with _entering[key]:
        if key in _exclusive:
            _exclusive[key].times += 1
        else:
            _exclusive[key] = _Entered(
                lease({device: WHOLE}, timeout_s=timeout_s, directory=directory, on_wait=on_wait)
            )
    try:
        yield
    finally:
        with _entering[key]:
            entered = _exclusive.get(key)
            if entered is not None:
                entered.times -= 1
                if not entered.times:
                    del _exclusive[key]
                    entered.lease.release()


def _join(folder: Path, wants: Mapping[str, float], n: int) -> tuple[Ticket, int]:
    """A new ticket at the end of the queue, and the descriptor that keeps it alive."""
    with _queue(folder):
        number = 1 + max((t.number for t in _tickets(folder, None)), default=0)
        ticket = Ticket(
            number=number,
            wants=dict(wants),
            n=n,
            pid=os.getpid(),
            command=" ".join(sys.argv)[:200],
            since_unix_s=time.time(),
        )
        fd = _open(_path(folder, number), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        fcntl.flock(fd, fcntl.LOCK_EX)
        _write(fd, ticket)
    return ticket, fd


def _wait(
    folder: Path,
    ticket: Ticket,
    fd: int,
    timeout_s: float,
    on_wait: Callable[[str], None] | None,
    names: Mapping[str, str],
) -> Ticket:
    """The ticket with its devices. Raises DeviceBusy."""
    end_s, poll_s = time.monotonic() + timeout_s, _POLL_S[0]
    while True:
        with _queue(folder):
            tickets = [*_tickets(folder, ticket), ticket]
            devices = granted(tickets, ticket.number)
            if devices:
                held = msgspec.structs.replace(ticket, holds=devices, since_unix_s=time.time())
                _write(fd, held)
                return held
        if time.monotonic() >= end_s:
            raise DeviceBusy(_busy(tickets, ticket, timeout_s, folder, names))
        if on_wait is not None:
            on_wait("; ".join(map(_who, in_the_way(tickets, ticket.number))))
            on_wait = None
        time.sleep(min(poll_s, max(0.0, end_s - time.monotonic())))
        poll_s = min(poll_s * 1.5, _POLL_S[1])


def _busy(
    tickets: list[Ticket], own: Ticket, timeout_s: float, folder: Path, names: Mapping[str, str]
) -> str:
    def named(devices: Mapping[str, float] | tuple[str, ...]) -> str:
        return ", ".join(names.get(device, device) for device in devices)

    others = in_the_way(tickets, own.number)
    holding = "; ".join(f"{_who(t)} holds {named(t.holds)}" for t in others if t.holds)
    waiting = "; ".join(f"{_who(t)} waits for it too and came first" for t in others if not t.holds)
    wanted = (
        f"{named(own.wants)} is"
        if len(own.wants) == 1
        else f"{own.n} of {named(own.wants)} are wanted, and"
    )
    return (
        f"{wanted} in use: {'; '.join(filter(None, (holding, waiting)))}, which was not given back within {timeout_s:g} s. "
        f"Let it finish or end it, or wait longer with --llmperf-wait. (Queue: {folder})"
    )


def _who(ticket: Ticket) -> str:
    return (
        f"process {ticket.pid} ({ticket.command!r}, for {time.time() - ticket.since_unix_s:.0f} s)"
    )


# The files. Each function below runs under the lock of the queue, but for `_queue` itself.


@contextlib.contextmanager
def _queue(folder: Path) -> Iterator[None]:
    """Alone with the tickets. Held for well under a millisecond."""
    fd = _open(folder / "queue.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        _close(fd)


def _tickets(folder: Path, own: Ticket | None) -> list[Ticket]:
    """Every living ticket but our own. Those of dead processes are removed."""
    mine = _path(folder, own.number) if own is not None else None
    read = (_read(path) for path in folder.glob(f"*{_SUFFIX}") if path != mine)
    return [ticket for ticket in read if ticket is not None]


def _read(path: Path) -> Ticket | None:
    fd = _open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return msgspec.json.decode(os.pread(fd, 2**20, 0), type=Ticket)
    else:
        path.unlink()  # its process is gone
        return None
    finally:
        _close(fd)


def _write(fd: int, ticket: Ticket) -> None:
    data = msgspec.json.encode(ticket)
    os.pwrite(fd, data, 0)
    os.ftruncate(fd, len(data))


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:012d}{_SUFFIX}"


def _open(path: Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    _open_fds.add(fd)
    return fd


def _close(fd: int) -> None:
    _open_fds.discard(fd)
    os.close(fd)


def _forget() -> None:
    """In a forked child: the parent's leases are not the child's, and must not live on with it."""
    for fd in _open_fds:
        os.close(fd)
    _open_fds.clear()
    _exclusive.clear()
    _entering.clear()


os.register_at_fork(after_in_child=_forget)


def _usable(directory: Path) -> Path:
    """The directory, made when missing.

    Refuses one that another user could have planted in the shared temporary folder.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise DeviceBusy(
            f"the lease directory {str(directory)!r} cannot be made: {error}. Set TMPDIR."
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise DeviceBusy(
            f"the lease directory {str(directory)!r} is not a folder of this user. Remove it, or set TMPDIR."
        )
    return directory
