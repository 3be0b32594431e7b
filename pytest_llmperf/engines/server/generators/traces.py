"""What the traces of all generators have in common."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from pytest_llmperf.core.trace import RequestTrace, TokenEvent


def failed_request(due_ns: int, sent_ns: int, end_ns: int, reason: str) -> RequestTrace:
    """Return the trace of a request that failed."""
    return RequestTrace(
        n_prompt_tokens=0,
        t_due_ns=due_ns,
        events=(),
        failure=reason[:200],
        t_sent_ns=sent_ns,
        t_end_ns=end_ns,
    )


def from_zero(traces: Sequence[RequestTrace]) -> tuple[RequestTrace, ...]:
    """Return the traces in the order in which they were due, the first at 1 s.

    Times of a wall clock in ns are too large for a float.
    """
    offset_ns = _first_due_ns(traces) - 10**9
    moved = [_earlier(trace, offset_ns) for trace in traces]
    return tuple(sorted(moved, key=lambda trace: trace.t_due_ns))


def _first_due_ns(traces: Sequence[RequestTrace]) -> int:
    return min((trace.t_due_ns for trace in traces), default=0)


def _earlier(trace: RequestTrace, offset_ns: int) -> RequestTrace:
    events = (TokenEvent(event.t_ns - offset_ns, event.n_tokens) for event in trace.events)
    return structs.replace(
        trace,
        t_due_ns=trace.t_due_ns - offset_ns,
        t_sent_ns=trace.t_sent_ns - offset_ns,
        t_end_ns=trace.t_end_ns - offset_ns,
        events=tuple(events),
    )
