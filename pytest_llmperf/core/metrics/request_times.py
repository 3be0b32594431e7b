"""Times of one request that succeeded, in seconds. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from pytest_llmperf.core.trace import RequestTrace, TokenEvent

_NS = 1e9

UNKNOWN_SPAN = ("tokens", "first")
"""Of `RequestTrace.untimed`: the time from the first token to the last is not known."""

UNKNOWN_GAPS = ("gaps", *UNKNOWN_SPAN)
"""Of `RequestTrace.untimed`: the times between tokens are not known one by one."""

NOT_TIMED = (
    "the server does not say which of its messages are tokens, or how many one holds: ask it for "
    "ids or for usage in each message (option 'add_fields')"
)
"""Reason of what a stream does not tell."""


def succeeded(request: RequestTrace) -> bool:
    """Whether tokens came and nothing failed."""
    return bool(request.events) and request.failure is None


def ttft_s(request: RequestTrace) -> float:
    """Return the time from due to the first generated token."""
    return (request.events[0].t_ns - request.t_due_ns) / _NS


def latency_s(request: RequestTrace) -> float:
    """Return the time from due to the end of the output."""
    return (request.ended_ns - request.t_due_ns) / _NS


def tpot_s(request: RequestTrace) -> float | None:
    """Return (end-to-end - TTFT) / (output tokens - 1).

    None for fewer than two tokens, where all came in one message or at one moment, and where it is
    not known whether the first message was the first token.
    """
    if request.n_output_tokens < 2 or len(request.events) < 2:  # noqa: PLR2004 - two ends
        return None
    span_ns = request.ended_ns - request.events[0].t_ns
    if request.untimed in UNKNOWN_SPAN or span_ns <= 0:
        return None
    return span_ns / (request.n_output_tokens - 1) / _NS


def gaps_s(events: Iterable[TokenEvent]) -> list[float]:
    """Return the gaps between consecutive tokens; a message of k tokens is k gaps of 1/k.

    Tokens that came with the first message have no gap before them: their time is in the TTFT.
    """
    gaps: list[float] = []
    for before, after in pairwise(events):
        gap_s = (after.t_ns - before.t_ns) / after.n_tokens / _NS
        gaps += [gap_s] * after.n_tokens
    return gaps
