"""Whether an open loop asks for more than the server can do, and whether the client kept up. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median

from pytest_llmperf.core.metrics.slo import ttft_s
from pytest_llmperf.core.trace import RequestTrace

THIRDS = 3
MIN_REQUESTS = 12
"""Fewer requests show no trend."""

GROWTH = 1.5
"""Requests in flight, and the median TTFT, of the last third over those of the first."""

LATENESS_S = 0.005
LATENESS_SHARE = 0.01
"""A client that sends later than this (its 99th percentile), and by more than this share of the median TTFT, was the limit."""

BUSY_SHARE = 0.9
"""Share of one core: a client's event loop that is busier than this has no time left to take tokens when they come."""


def in_flight_mean(requests: Sequence[RequestTrace], start_ns: int, end_ns: int) -> float:
    """Requests in flight, on average over the time from `start_ns` to `end_ns`."""
    overlap = sum(max(0, min(end_ns, ended_ns(r)) - max(start_ns, r.t_due_ns)) for r in requests)
    return overlap / (end_ns - start_ns) if end_ns > start_ns else 0.0


def in_flight_max(requests: Sequence[RequestTrace]) -> int:
    """The most requests in flight at once."""
    steps = sorted([(r.t_due_ns, 1) for r in requests] + [(ended_ns(r), -1) for r in requests])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def over_saturated(requests: Sequence[RequestTrace]) -> str:
    """Why there is no steady state, or an empty text.

    Over the time in which requests came, those in flight and the median TTFT grew from third to
    third, both by half or more from the first to the last.

    Requests in flight grow in a stable queue too, by chance and at its start; that TTFT grows with
    them, and in every third, is a queue that is not served as fast as it fills. Failed requests are
    in flight until they failed.
    """
    ordered = sorted(requests, key=lambda r: r.t_due_ns)
    if len(ordered) < MIN_REQUESTS:
        return ""
    first_ns, last_ns = ordered[0].t_due_ns, ordered[-1].t_due_ns
    edges = [first_ns + (last_ns - first_ns) * i // THIRDS for i in range(THIRDS + 1)]
    flights = [in_flight_mean(ordered, a, b) for a, b in pairwise(edges)]
    waits = [_median_ttft_s(ordered, a, b) for a, b in pairwise(edges)]
    if not (
        _grows(flights)
        and flights[-1] >= flights[0] + 1
        and None not in waits
        and _grows([w or 0.0 for w in waits])
    ):
        return ""
    return (
        f"requests in flight grew from {flights[0]:.1f} to {flights[-1]:.1f} and the median TTFT from {waits[0]:.3g} s to "
        f"{waits[-1]:.3g} s between the first and the last third of the arrivals: more is asked for than the server can do"
    )


def client_limited(
    lateness_s: Sequence[float],
    loop_lag_s: Sequence[float],
    ttft_s_seen: Sequence[float],
    busy_share: float,
) -> str:
    """Why the client was the limit of a run, or an empty text.

    `lateness_s` is sending minus due, one a request; `loop_lag_s` how much later than asked a timer
    of the client's event loop rang, one a probe; `busy_share` its CPU time over wall time. What is
    late by less than 1 % of the median TTFT changes no result: it is part of the TTFT, which counts
    from when the request was due.
    """
    allowed_s = max(LATENESS_S, LATENESS_SHARE * median(ttft_s_seen)) if ttft_s_seen else LATENESS_S
    for what, values in (("sent its requests", lateness_s), ("saw its timers", loop_lag_s)):
        late_s = upper(values, 0.99)
        if late_s > allowed_s:
            return f"the client {what} {1e3 * late_s:.1f} ms late (99th percentile; {1e3 * allowed_s:.1f} ms are allowed)"
    if busy_share > BUSY_SHARE:
        return f"the client's event loop was busy for {busy_share:.0%} of the run ({BUSY_SHARE:.0%} are allowed)"
    return ""


def upper(values: Sequence[float], q: float) -> float:
    """The smallest value that at least a share `q` of the values does not exceed; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def ended_ns(request: RequestTrace) -> int:
    """When a request was over: its last token, or when it failed."""
    last = request.events[-1].t_ns if request.events else request.t_due_ns
    return max(last, request.t_end_ns)


def _median_ttft_s(requests: Sequence[RequestTrace], start_ns: int, end_ns: int) -> float | None:
    seen = [
        ttft_s(r)
        for r in requests
        if start_ns <= r.t_due_ns <= end_ns and r.events and r.failure is None
    ]
    return median(seen) if seen else None


def _grows(values: Sequence[float]) -> bool:
    return all(a < b for a, b in pairwise(values)) and values[-1] >= GROWTH * values[0]


def mean(values: Sequence[float]) -> float:
    """The mean; 0 for none."""
    return fmean(values) if values else 0.0
