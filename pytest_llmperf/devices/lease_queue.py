"""Who gets which devices next: a pure function of the tickets that are there.

First come, first served; nobody starves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

WHOLE = 1.0
_ROUNDING = 1e-9


class Ticket(Struct, frozen=True, kw_only=True):
    """One request for `n` devices, all at once, out of those in `wants`.

    `wants` has the share of each device that is needed, `WHOLE` to have it alone. Numbers say who
    came first. `holds` is empty while the request waits. Times are seconds of the Unix epoch.
    """

    number: int
    wants: dict[str, float]
    n: int
    pid: int
    command: str = ""
    since_unix_s: float = 0.0
    holds: tuple[str, ...] = ()


def granted(tickets: Iterable[Ticket], number: int) -> tuple[str, ...]:
    """Return the devices that the waiting ticket `number` may take now; none while it must wait.

    Tickets are served in the order of their numbers. One that cannot be served keeps every later
    one from all the devices that it could use, so that a request for many devices is not passed for
    ever by requests for few.
    """
    tickets = list(tickets)
    free = _free(tickets)
    blocked: set[str] = set()
    for ticket in sorted(_waiting(tickets), key=lambda ticket: ticket.number):
        chosen = _chosen(ticket, free, blocked)
        if ticket.number == number:
            return chosen
        if not chosen:
            blocked.update(ticket.wants)
        for device in chosen:
            free[device] -= ticket.wants[device]
    return ()


def in_the_way(tickets: Iterable[Ticket], number: int) -> list[Ticket]:
    """Return the tickets that keep ticket `number` from its devices.

    They hold some that it could use, or came before it and wait for them too.
    """
    by_number = {ticket.number: ticket for ticket in tickets}
    devices = set(by_number.pop(number).wants)
    others = by_number.values()
    holders = [ticket for ticket in others if devices & set(ticket.holds)]
    earlier = [ticket for ticket in _waiting(others) if ticket.number < number]
    return [*holders, *(ticket for ticket in earlier if devices & set(ticket.wants))]


def longest_wait_s(tickets: Iterable[Ticket], devices: Iterable[str], now_unix_s: float) -> float:
    """Return how long anybody has waited for one of `devices`; 0 when nobody waits."""
    waiting = _waiting_for(tickets, set(devices))
    return max((now_unix_s - ticket.since_unix_s for ticket in waiting), default=0.0)


def _waiting_for(tickets: Iterable[Ticket], devices: set[str]) -> list[Ticket]:
    """Return the tickets that wait and want one of `devices`."""
    return [ticket for ticket in _waiting(tickets) if devices & set(ticket.wants)]


def _chosen(ticket: Ticket, free: Mapping[str, float], blocked: Collection[str]) -> tuple[str, ...]:
    """Return the devices for a ticket, in its order; none where too few have room.

    They are the fullest that have room, so that shares leave whole devices free.
    """
    order = list(ticket.wants)
    able = [device for device in order if device not in blocked and _has_room(device, ticket, free)]
    if len(able) < ticket.n:
        return ()
    fullest = sorted(able, key=lambda device: (free[device], order.index(device)))[: ticket.n]
    return tuple(sorted(fullest, key=order.index))


def _has_room(device: str, ticket: Ticket, free: Mapping[str, float]) -> bool:
    return free[device] >= ticket.wants[device] - _ROUNDING


def _free(tickets: Iterable[Ticket]) -> defaultdict[str, float]:
    free: defaultdict[str, float] = defaultdict(lambda: WHOLE)
    for ticket in tickets:
        for device in ticket.holds:
            free[device] -= ticket.wants[device]
    return free


def _waiting(tickets: Iterable[Ticket]) -> list[Ticket]:
    return [ticket for ticket in tickets if not ticket.holds]
