"""Who is served next, as a pure function of the tickets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_llmperf.devices.lease_queue import WHOLE, Ticket, granted, in_the_way, longest_wait_s

DEVICES = ("a", "b", "c")


def ticket(
    number: int, n: int = 1, devices: tuple[str, ...] = DEVICES, share: float = WHOLE, **more
) -> Ticket:
    return Ticket(number=number, wants=dict.fromkeys(devices, share), n=n, pid=number, **more)


def test_devices_are_given_in_the_order_asked_for():
    assert granted([ticket(1, 2)], 1) == ("a", "b")


def test_all_or_nothing():
    """Two of three are free, three are wanted."""
    assert granted([ticket(1, 1, holds=("b",)), ticket(2, 3)], 2) == ()
    assert granted([ticket(1, 1, holds=("b",)), ticket(2, 2)], 2) == ("a", "c")


def test_a_request_for_many_is_not_passed_by_a_later_one_for_few():
    holder, many, few = ticket(1, holds=("a",)), ticket(2, 3), ticket(3, 1)
    assert granted([holder, many, few], 3) == ()
    assert granted([holder, few], 3) == ("b",)


def test_a_waiting_request_leaves_devices_alone_that_it_cannot_use():
    """Two sessions with different pools."""
    tickets = [
        ticket(1, holds=("a",), devices=("a",)),
        ticket(2, 2, ("a", "b")),
        ticket(3, 1, ("c",)),
    ]
    assert granted(tickets, 3) == ("c",)
    assert granted([*tickets, ticket(4, 1, ("b", "c"))], 4) == ()


def test_shares_fill_a_device_before_they_open_another():
    half = ticket(1, share=0.5, holds=("b",))
    assert granted([half, ticket(2, share=0.4)], 2) == ("b",)
    assert granted([half, ticket(2, share=0.6)], 2) == ("a",)
    assert granted([half, ticket(2, 3)], 2) == ()


def test_who_is_in_the_way_is_who_holds_or_came_first():
    holder, before, other, after = (
        ticket(1, holds=("a",)),
        ticket(2),
        ticket(3, devices=("z",)),
        ticket(5),
    )
    own = ticket(4, 3)
    assert in_the_way([holder, before, other, own, after], 4) == [holder, before]


def test_the_longest_wait_is_that_of_the_devices_asked_about():
    tickets = [
        ticket(1, devices=("a",), since_unix_s=90.0),
        ticket(2, devices=("b",), since_unix_s=50.0),
    ]
    assert longest_wait_s(tickets, ("a",), 100.0) == 10.0
    assert longest_wait_s(tickets, ("c",), 100.0) == 0.0
    assert (
        longest_wait_s([replace(t, holds=tuple(t.wants)) for t in tickets], ("a", "b"), 100.0)
        == 0.0
    )


REQUESTS = st.lists(
    st.tuples(
        st.sets(st.sampled_from("abcd"), min_size=1).map(sorted),
        st.integers(1, 4),
        st.sampled_from([1.0, 0.5, 0.25]),
    ),
    min_size=1,
    max_size=8,
)


@given(REQUESTS, st.data())
def test_any_order_of_looks_and_releases_serves_everyone_and_never_too_much(requests, data):
    """Tickets look in any order and holders leave in any order.

    No device is given out twice, and nobody is left waiting.
    """
    tickets = {
        i: Ticket(number=i, wants=dict.fromkeys(devices, share), n=min(n, len(devices)), pid=i)
        for i, (devices, n, share) in enumerate(requests)
    }
    served = set()
    while tickets:
        look = data.draw(st.sampled_from(sorted(tickets)))
        if tickets[look].holds:
            del tickets[look]
            continue
        devices = granted(tickets.values(), look)
        oldest = min(t.number for t in tickets.values() if not t.holds)
        if look == oldest and not any(t.holds for t in tickets.values()):
            assert devices  # the first in the queue of an idle host is always served
        if devices:
            assert len(set(devices)) == tickets[look].n
            tickets[look] = replace(tickets[look], holds=devices)
            served.add(look)
        for device in "abcd":
            assert (
                sum(t.wants[device] for t in tickets.values() if device in t.holds) <= WHOLE + 1e-9
            )
    assert served == set(range(len(requests)))
