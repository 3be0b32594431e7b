"""Many requests of different lengths through a decode loop, in static batches: padded, and as long as the longest of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pytest_llmperf.core.trace import Mark, RequestTrace, TokenEvent, Trace
from pytest_llmperf.engines.outputs.decoding import CacheSeen, Decoded, DecodeLoop
from pytest_llmperf.engines.outputs.inputs import left_padded
from pytest_llmperf.engines.outputs.requests import BatchRequests
from pytest_llmperf.errors import UsageError


@dataclass(frozen=True)
class Answered:
    """What came of them, in their order: tokens, and when they were there.

    `start_ns` is when the first was handed over.
    """

    start_ns: int
    tokens: list[list[int]]
    events: list[tuple[TokenEvent, ...]]
    cache: CacheSeen
    clock: str = "host"


def in_static_batches(
    loop: DecodeLoop, requests: BatchRequests, size: int, pad: int, device: torch.device
) -> Answered:
    """`size` requests at a time. What a sequence decodes after its own last token is thrown away.

    Raises UsageError for a loop whose sequences do not get one token a step.
    """
    start_ns, tokens, events, decoded = 0, [], [], None
    for first in range(0, len(requests.rows), size):
        asked_for = requests.new_tokens[first : first + size]
        batch = left_padded(requests.rows[first : first + size], pad, device)
        decoded = loop.decode(batch, max(asked_for))
        start_ns = start_ns or decoded.t_start_ns
        times = _times(decoded)
        tokens += [row[:n] for row, n in zip(decoded.tokens.tolist(), asked_for, strict=True)]
        events += [tuple(TokenEvent(t) for t in times[:n]) for n in asked_for]
    assert decoded is not None  # noqa: S101 - a Batch has at least one request
    return Answered(start_ns, tokens, events, decoded.cache, decoded.clock)


def _times(decoded: Decoded) -> tuple[int, ...]:
    if any(n != 1 for n in decoded.arrivals):
        raise UsageError(
            "a Batch in static batches needs one token a step, and assisted decoding gives several. Take Decode."
        )
    return decoded.t_tokens_ns


def trace_of(
    answered: Answered,
    requests: BatchRequests,
    repetition: int,
    marks: tuple[Mark, ...],
    computed: int | None,
) -> Trace:
    """One request for each prompt, all due when the first was handed over."""
    made = tuple(
        RequestTrace(n_prompt_tokens=len(row), t_due_ns=answered.start_ns, events=events)
        for row, events in zip(requests.rows, answered.events, strict=True)
    )
    return Trace(
        repetition=repetition, requests=made, marks=marks, clock=answered.clock, computed=computed
    )
