"""Whether a load is more than the server can do, and whether the client kept up. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median

from pytest_llmperf.core.metrics.request_times import succeeded, ttft_s
from pytest_llmperf.core.trace import RequestTrace

THIRDS = 3
MIN_REQUESTS = 12
"""Fewer requests show no trend."""

GROWTH = 1.5
"""Requests in flight, and the median TTFT, of the last third over those of the first."""

LATENESS_S = 0.005
LATENESS_SHARE = 0.01
"""Limits of the 99th percentile of a client's lateness, the second as a share of the median TTFT.

A client that sends later than both was the limit.
"""

BUSY_SHARE = 0.9
"""Share of one core.

A client's event loop that is busier has no time left to take tokens when they come.
"""


def in_flight_mean(requests: Sequence[RequestTrace], start_ns: int, end_ns: int) -> float:
    """Return the requests in flight, on average over the time from `start_ns` to `end_ns`."""
    if end_ns <= start_ns:
        return 0.0
    overlaps_ns = [_overlap_ns(request, start_ns, end_ns) for request in requests]
    return sum(overlaps_ns) / (end_ns - start_ns)


def _overlap_ns(request: RequestTrace, start_ns: int, end_ns: int) -> int:
    return max(0, min(end_ns, ended_ns(request)) - max(start_ns, request.t_due_ns))


def in_flight_max(requests: Sequence[RequestTrace]) -> int:
    """Return the most requests in flight at once."""
    begins = [(request.t_due_ns, 1) for request in requests]
    ends = [(ended_ns(request), -1) for request in requests]
    most = in_flight = 0
    for _, step in sorted(begins + ends):
        in_flight += step
        most = max(most, in_flight)
    return most


def over_saturated(requests: Sequence[RequestTrace]) -> str:
    """Return why there is no steady state, or an empty text.

    Over the time in which requests came, those in flight and the median TTFT grew from third to
    third, both by half or more from the first to the last.

    Requests in flight grow in a stable queue too, by chance and at its start; that TTFT grows with
    them, and in every third, is a queue that is not served as fast as it fills. Failed requests are
    in flight until they failed.
    """
    if len(requests) < MIN_REQUESTS:
        return ""
    thirds = list(pairwise(_edges_of_thirds_ns(requests)))
    flights = [in_flight_mean(requests, start_ns, end_ns) for start_ns, end_ns in thirds]
    if not _grows(flights) or flights[-1] < flights[0] + 1:
        return ""
    ttfts = [_ttfts_s(requests, start_ns, end_ns) for start_ns, end_ns in thirds]
    waits = [median(times) for times in ttfts if times]
    if len(waits) < THIRDS or not _grows(waits):
        return ""
    return (
        f"requests in flight grew from {flights[0]:.1f} to {flights[-1]:.1f} and the median TTFT "
        f"from {waits[0]:.3g} s to {waits[-1]:.3g} s between the first and the last third of the "
        "arrivals: more is asked for than the server can do"
    )


def _edges_of_thirds_ns(requests: Sequence[RequestTrace]) -> list[int]:
    """Return the ends of the thirds of the time in which requests were due."""
    due_ns = [request.t_due_ns for request in requests]
    first_ns, last_ns = min(due_ns), max(due_ns)
    return [first_ns + (last_ns - first_ns) * i // THIRDS for i in range(THIRDS + 1)]


def client_limited(
    lateness_s: Sequence[float],
    loop_lag_s: Sequence[float],
    ttfts_s: Sequence[float],
    busy_share: float,
) -> str:
    """Return why the client was the limit of a run, or an empty text.

    `lateness_s` is sending minus due, one a request; `loop_lag_s` how much later than asked a timer
    of the client's event loop rang, one a probe; `busy_share` its CPU time over wall time. What is
    late by less than 1 % of the median TTFT changes no result: it is part of the TTFT, which counts
    from when the request was due.
    """
    allowed_s = LATENESS_S
    if ttfts_s:
        allowed_s = max(LATENESS_S, LATENESS_SHARE * median(ttfts_s))
    for action, delays in (("sent its requests", lateness_s), ("saw its timers", loop_lag_s)):
        late_s = upper(delays, 0.99)
        if late_s > allowed_s:
            return (
                f"the client {action} {1e3 * late_s:.1f} ms late "
                f"(99th percentile; {1e3 * allowed_s:.1f} ms are allowed)"
            )
    if busy_share > BUSY_SHARE:
        return (
            f"the client's event loop was busy for {busy_share:.0%} of the run "
            f"({BUSY_SHARE:.0%} are allowed)"
        )
    return ""


def upper(values: Sequence[float], q: float) -> float:
    """Return the smallest value that a share `q` of the values does not exceed; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def ended_ns(request: RequestTrace) -> int:
    """Return when a request was over: its last token, or when it failed."""
    return max(request.ended_ns, request.t_end_ns)


def _ttfts_s(requests: Sequence[RequestTrace], start_ns: int, end_ns: int) -> list[float]:
    """Return the TTFT of the successful requests that were due in this time."""
    return [
        ttft_s(request)
        for request in requests
        if start_ns <= request.t_due_ns <= end_ns and succeeded(request)
    ]


def _grows(values: Sequence[float]) -> bool:
    return all(a < b for a, b in pairwise(values)) and values[-1] >= GROWTH * values[0]


def mean(values: Sequence[float]) -> float:
    """Return the mean; 0 for none."""
    return fmean(values) if values else 0.0
