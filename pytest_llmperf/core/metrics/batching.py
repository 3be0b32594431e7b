"""Quantities of requests that run together: total rates, and the cost of padding. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.core.trace import RequestTrace, Trace
from pytest_llmperf.errors import InvalidRun

UNKNOWN_PROMPTS = "the number of prompt tokens is not known"
UNKNOWN_POSITIONS = "how many positions went through the model is not known"
QUEUED = (
    "requests wait for one another: the time to a first token holds other requests' prompts "
    "and tokens"
)


def useful_positions(request: RequestTrace) -> int:
    """Return the positions that a request needs.

    They are its prompt, and each of its output tokens but the last, after which nothing is asked.
    """
    return request.n_prompt_tokens + request.n_output_tokens - 1


def padding_share(trace: Trace, requests: Sequence[RequestTrace]) -> float | None:
    """Return the share of the computed positions that no request needed.

    None where it is not known how many were computed.

    Raises InvalidRun when fewer positions were computed than the requests needed.
    """
    if trace.computed is None:
        return None
    useful = sum(map(useful_positions, requests))
    if useful > trace.computed:
        raise InvalidRun(
            f"repetition {trace.repetition}: {trace.computed} positions were computed, "
            f"{useful} were needed."
        )
    return 1 - useful / trace.computed


def total_tokens(requests: Sequence[RequestTrace]) -> int | None:
    """Return the prompt and output tokens; None where prompts are not known."""
    if any(request.n_prompt_tokens < 1 for request in requests):
        return None
    return sum(request.n_prompt_tokens + request.n_output_tokens for request in requests)


def wrong_length(trace: Trace, lengths: Sequence[int]) -> str | None:
    """Return which output has another length than `lengths` says, the first one in their order."""
    for i, (request, length) in enumerate(zip(trace.requests, lengths, strict=False)):
        answered = request.failure is None and bool(request.events)
        n_tokens = request.n_output_tokens
        if answered and n_tokens != length:
            return f"request {i} has {n_tokens} output tokens, {length} were asked for"
    if len(trace.requests) != len(lengths):
        return f"{len(trace.requests)} requests were answered, {len(lengths)} were asked"
    return None
