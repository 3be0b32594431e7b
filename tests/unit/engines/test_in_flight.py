"""Requests that were decoded side by side are seen by the times of their tokens."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from pytest_llmperf.core.trace import TokenEvent
from pytest_llmperf.engines.transformers.observed.in_flight import InFlight


def requests(*times):
    return [tuple(TokenEvent(t) for t in request) for request in times]


@pytest.mark.parametrize(
    ("times", "most", "batching"),
    [
        (((1, 2, 3), (1, 2, 3), (2, 3, 4)), 3, "continuous"),
        (((1, 2, 3), (2, 5, 6), (4, 5)), 2, "continuous"),
        (((1, 2), (3, 4), (5, 6)), 1, "one request at a time"),
        (((1, 2), (2, 3)), 1, "one request at a time"),
        (((5, 9), (1, 4)), 1, "one request at a time"),
        (((1, 2, 3),), 1, "continuous"),
        (((1,), (2,)), 0, "continuous"),
    ],
)
def test_requests_in_flight_are_those_between_their_first_and_last_token(times, most, batching):
    """One at a time is not continuous; a lone request tells nothing."""
    in_flight = InFlight.of(requests(*times))
    assert (in_flight.most, in_flight.batching) == (most, batching)
