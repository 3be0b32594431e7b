"""Leases of devices, or of a share of one, held by one process at a time.

They hold across all sessions and pytest-xdist workers of this user on this host.

One file a ticket, locked (flock) by the process that made it, so that a ticket dies with its
process whatever ends that. Tickets are read and written under the lock of the queue by
`lease_files`; who is served next is decided in `lease_queue`.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec

from pytest_llmperf.devices import lease_files
from pytest_llmperf.devices.lease_queue import WHOLE, Ticket, granted, in_the_way, longest_wait_s
from pytest_llmperf.errors import DeviceBusy
from pytest_llmperf.secrets import masked

# From, up to: hand-overs between short commands are quick, long waits cost nothing.
_POLL_S = (0.002, 0.05)
_POLL_GROWTH = 1.5
_COMMAND_CHARACTERS = 200
_exclusive: dict[tuple[Path, str], _Entered] = {}
_entering: defaultdict[tuple[Path, str], threading.Lock] = defaultdict(threading.Lock)


@dataclass
class _Entered:
    lease: Lease
    times: int = 1


@dataclass(eq=False)
class Lease:
    """Devices that this process holds until `release`, in the order of the request."""

    devices: tuple[str, ...]
    _directory: Path
    _ticket: Ticket = field(repr=False)
    _fd: int = field(repr=False)
    _owner_pid: int = field(default_factory=os.getpid, repr=False)

    def release(self) -> None:
        """Give all devices back. May be called again; in a forked child it does nothing."""
        if self._is_held_here():
            self._remove_ticket()
            self._fd = -1

    def _is_held_here(self) -> bool:
        """Whether it is not given back yet, and this is the process that took it."""
        return self._fd >= 0 and self._owner_pid == os.getpid()

    def _remove_ticket(self) -> None:
        """Remove the file of the ticket.

        Where the queue cannot be used, the next process removes it: once it is closed, it holds
        nothing.
        """
        try:
            with contextlib.suppress(DeviceBusy), lease_files.queue(self._directory, 0.0):
                lease_files.remove(self._directory, self._ticket)
        finally:
            lease_files.close(self._fd)

    def wanted_since_s(self) -> float:
        """Return how long others have been waiting for one of the devices; 0 when nobody does.

        0 also where the queue cannot be used.
        """
        tickets: list[Ticket] = []
        with contextlib.suppress(DeviceBusy), lease_files.queue(self._directory, 0.0):
            tickets = lease_files.tickets(self._directory, self._ticket, {})
        return longest_wait_s(tickets, self.devices, time.time())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def default_directory() -> Path:
    """Return the user's lease directory on this host.

    Every session finds the same one, whatever project it tests. Raises DeviceBusy where there is
    no temporary folder.
    """
    try:
        temporary = tempfile.gettempdir()
    except OSError as error:
        raise DeviceBusy(
            f"there is no folder for the queue of leases: {error}. Set TMPDIR."
        ) from error
    return Path(temporary) / f"llmperf-{os.getuid()}"


def lease(
    wants: Mapping[str, float],
    n: int = 1,
    *,
    timeout_s: float,
    directory: Path | None = None,
    on_wait: Callable[[str], None] | None = None,
    names: Mapping[str, str] | None = None,
) -> Lease:
    """Take `n` devices, all at once, out of those in `wants`.

    `wants` has the share of each device that is needed, 1 to have it alone. Requests are served in
    the order in which they came. `on_wait` is told once who is in the way. `names` says what
    devices are called in messages. A process that holds a lease and asks for more can wait for
    itself: give back first.

    Raises:
        DeviceBusy: not served within `timeout_s`, or the directory cannot be used. The message
            names who is in the way.
    """
    if not 1 <= n <= len(wants):
        raise ValueError(f"{n} devices out of {len(wants)} cannot be leased")
    folder = _usable(directory or default_directory())
    end_s = time.monotonic() + timeout_s
    ticket, fd = _join(folder, wants, n, end_s)
    try:
        served, served_fd = _wait(folder, ticket, _Patience(timeout_s, end_s, on_wait), names or {})
    except BaseException:
        Lease((), folder, ticket, fd).release()
        raise
    lease_files.close(fd)  # another file has its place
    return Lease(served.holds, folder, served, served_fd)


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
            _leave(key)


def _leave(key: tuple[Path, str]) -> None:
    """Give a device back when the outermost block that holds it is left."""
    entered = _exclusive.get(key)
    if entered is None:
        return
    entered.times -= 1
    if not entered.times:
        del _exclusive[key]
        entered.lease.release()


def _join(folder: Path, wants: Mapping[str, float], n: int, end_s: float) -> tuple[Ticket, int]:
    """Put a new ticket at the end of the queue.

    Returns it, and the descriptor that keeps it alive.
    """
    with lease_files.queue(folder, end_s):
        others = lease_files.tickets(folder, None, wants)
        last = max((ticket.number for ticket in others), default=0)
        ticket = _new_ticket(last + 1, wants, n)
        return ticket, lease_files.make(folder, ticket)


def _new_ticket(number: int, wants: Mapping[str, float], n: int) -> Ticket:
    return Ticket(
        number=number,
        wants=dict(wants),
        n=n,
        pid=os.getpid(),
        command=_own_command(),
        since_unix_s=time.time(),
    )


def _own_command() -> str:
    """Return this process's program and working folder, as others read them in a ticket.

    Its arguments are nobody else's business: options have passwords in them.
    """
    program = Path(sys.argv[0] if sys.argv else sys.executable)
    name = program.parent.name if program.name == "__main__.py" else program.name
    text = f"{name} in {_working_folder()}"[:_COMMAND_CHARACTERS]
    return text.encode("utf-8", "replace").decode("utf-8")


def _working_folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - a text
    except OSError:
        return "a folder that is gone"


@dataclass
class _Patience:
    """How long is waited, until when of the monotonic clock, and who is told of it once."""

    timeout_s: float
    end_s: float
    on_wait: Callable[[str], None] | None

    def tell(self, reason: str) -> None:
        """Say who is in the way, the first time."""
        if self.on_wait is not None:
            self.on_wait(reason)
            self.on_wait = None


def _wait(
    folder: Path, ticket: Ticket, patience: _Patience, names: Mapping[str, str]
) -> tuple[Ticket, int]:
    """Return the ticket with its devices, and the descriptor of its new file. Raises DeviceBusy."""
    poll_s = _POLL_S[0]
    while True:
        with lease_files.queue(folder, patience.end_s):
            tickets = [*lease_files.tickets(folder, ticket, ticket.wants), ticket]
            devices = granted(tickets, ticket.number)
            if devices:
                served = _holding(ticket, devices)
                return served, lease_files.make(folder, served)
        if time.monotonic() >= patience.end_s:
            raise DeviceBusy(_busy_text(tickets, ticket, patience.timeout_s, folder, names))
        patience.tell("; ".join(map(_process_text, in_the_way(tickets, ticket.number))))
        _sleep(poll_s, patience.end_s)
        poll_s = min(poll_s * _POLL_GROWTH, _POLL_S[1])


def _sleep(seconds: float, end_s: float) -> None:
    """Sleep, but not beyond the end of the wait."""
    time.sleep(min(seconds, max(0.0, end_s - time.monotonic())))


def _holding(ticket: Ticket, devices: tuple[str, ...]) -> Ticket:
    """Return the ticket as one that holds these devices from now on."""
    return msgspec.structs.replace(ticket, holds=devices, since_unix_s=time.time())


def _busy_text(
    tickets: list[Ticket], own: Ticket, timeout_s: float, folder: Path, names: Mapping[str, str]
) -> str:
    others = in_the_way(tickets, own.number)
    reasons = [_reason(other, names) for other in sorted(others, key=_waits)]
    devices = _names(own.wants, names)
    subject = f"{devices} is" if len(own.wants) == 1 else f"{own.n} of {devices} are wanted, and"
    return (
        f"{subject} in use: {'; '.join(reasons)}, which was not given back within "
        f"{timeout_s:g} s. Let it finish or end it, or wait longer with --llmperf-wait. "
        f"(Queue: {folder})"
    )


def _waits(ticket: Ticket) -> bool:
    return not ticket.holds


def _reason(other: Ticket, names: Mapping[str, str]) -> str:
    """Return why a ticket is in the way, in words."""
    if _waits(other):
        return f"{_process_text(other)} waits for it too and came first"
    return f"{_process_text(other)} holds {_names(other.holds, names)}"


def _names(devices: Iterable[str], names: Mapping[str, str]) -> str:
    return ", ".join(names.get(device, device) for device in devices)


def _process_text(ticket: Ticket) -> str:
    waited_s = time.time() - ticket.since_unix_s
    return f"process {ticket.pid} ({masked(ticket.command)!r}, for {waited_s:.0f} s)"


def _forget() -> None:
    """Drop the parent's leases in a forked child: they must not live on with it."""
    lease_files.forget()
    _exclusive.clear()
    _entering.clear()


os.register_at_fork(after_in_child=_forget)


def _usable(directory: Path) -> Path:
    """Return the directory, which is made when missing.

    Raises DeviceBusy for one that cannot be made, or that another user could have planted in the
    shared temporary folder.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise DeviceBusy(
            f"the lease directory {str(directory)!r} cannot be made: {error}. Set TMPDIR."
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise DeviceBusy(
            f"the lease directory {str(directory)!r} is not a folder of this user. "
            "Remove it, or set TMPDIR."
        )
    return directory
