"""Who gets which devices next: a pure function of the tickets that are there.

First come, first served; nobody starves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from msgspec import Struct

WHOLE = 1.0
_ROUNDING = 1e-9


class Ticket(Struct, frozen=True, kw_only=True):
    """One request: `n` devices, all at once, out of those in `wants` (device -> share of it, `WHOLE` to have it alone).

    Numbers say who came first. `holds` is empty while it waits. Times are seconds of the Unix epoch.
    """

    number: int
    wants: dict[str, float]
    n: int
    pid: int
    command: str = ""
    since_unix_s: float = 0.0
    holds: tuple[str, ...] = ()


def granted(tickets: Iterable[Ticket], number: int) -> tuple[str, ...]:
    """The devices that the waiting ticket `number` may take now; empty while it must wait.

    Tickets are served in the order of their numbers. One that cannot be served keeps every later
    one from all the devices that it could use, so that a request for many devices is not passed for
    ever by requests for few.
    """
    tickets = list(tickets)
    free = _free(tickets)
    blocked: set[str] = set()
    for ticket in sorted(_waiting(tickets), key=lambda t: t.number):
        able = [
            d
            for d, share in ticket.wants.items()
            if d not in blocked and free[d] >= share - _ROUNDING
        ]
        chosen = _chosen(able, ticket, free) if len(able) >= ticket.n else ()
        if ticket.number == number:
            return chosen
        if not chosen:
            blocked.update(ticket.wants)
        for device in chosen:
            free[device] -= ticket.wants[device]
    return ()


def in_the_way(tickets: Iterable[Ticket], number: int) -> list[Ticket]:
    """Holders of devices that ticket `number` could use, and those that came before it and wait for them too."""
    tickets = list(tickets)
    own = next(t for t in tickets if t.number == number)
    holders = [t for t in tickets if t.number != number and own.wants.keys() & set(t.holds)]
    before = [
        t for t in _waiting(tickets) if t.number < number and own.wants.keys() & t.wants.keys()
    ]
    return [*holders, *before]


def longest_wait_s(tickets: Iterable[Ticket], devices: Iterable[str], now_unix_s: float) -> float:
    """How long the first of those who wait for one of `devices` has waited; 0 when nobody does."""
    wanted = set(devices)
    return max(
        (now_unix_s - t.since_unix_s for t in _waiting(tickets) if wanted & t.wants.keys()),
        default=0.0,
    )


def _chosen(able: list[str], ticket: Ticket, free: Mapping[str, float]) -> tuple[str, ...]:
    """The fullest devices that have room, so that shares leave whole devices free.

    In the ticket's order.
    """
    order = list(ticket.wants)
    fullest = sorted(able, key=lambda device: (free[device], order.index(device)))[: ticket.n]
    return tuple(sorted(fullest, key=order.index))


def _free(tickets: Iterable[Ticket]) -> defaultdict[str, float]:
    free: defaultdict[str, float] = defaultdict(lambda: WHOLE)
    for ticket in tickets:
        for device in ticket.holds:
            free[device] -= ticket.wants[device]
    return free


def _waiting(tickets: Iterable[Ticket]) -> list[Ticket]:
    return [ticket for ticket in tickets if not ticket.holds]
