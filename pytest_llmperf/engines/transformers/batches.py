"""Many requests of different lengths through a decode loop, in static batches.

A batch is padded, and decodes as long as its longest request needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pytest_llmperf.core.trace import RequestTrace, TokenEvent, Trace
from pytest_llmperf.engines.outputs.decoding import CacheSeen, Decoded, DecodeLoop
from pytest_llmperf.engines.outputs.inputs import left_padded
from pytest_llmperf.engines.outputs.requests import BatchRequests
from pytest_llmperf.errors import UsageError
from pytest_llmperf.instruments.telemetry import Telemetry


@dataclass(frozen=True)
class Answered:
    """The tokens of all requests, in their order, and when each of them arrived.

    `start_ns` is when the first request was handed over.
    """

    start_ns: int
    tokens: list[list[int]]
    events: list[tuple[TokenEvent, ...]]
    cache: CacheSeen
    clock: str = "host"


def in_static_batches(
    loop: DecodeLoop, requests: BatchRequests, size: int, pad: int, device: torch.device
) -> Answered:
    """Decode `size` requests at a time.

    What a sequence decodes after its own last token is thrown away. Raises UsageError for a loop
    whose sequences do not get one token a step.
    """
    start_ns, tokens, events, decoded = 0, [], [], None
    for first in range(0, len(requests.rows), size):
        new_tokens = requests.new_tokens[first : first + size]
        batch = left_padded(requests.rows[first : first + size], pad, device)
        decoded = loop.decode(batch, max(new_tokens))
        start_ns = start_ns or decoded.t_start_ns
        tokens += [row[:n] for row, n in zip(decoded.tokens.tolist(), new_tokens, strict=True)]
        step_events = _step_events(decoded)
        events += [step_events[:n] for n in new_tokens]
    assert decoded is not None  # noqa: S101 - a Batch has at least one request
    return Answered(start_ns, tokens, events, decoded.cache, decoded.clock)


def _step_events(decoded: Decoded) -> tuple[TokenEvent, ...]:
    """Return one event a step. Raises UsageError where a step gave a sequence several tokens."""
    if any(n != 1 for n in decoded.arrivals):
        raise UsageError(
            "a Batch in static batches needs one token a step, and assisted decoding gives "
            "several. Take Decode."
        )
    return tuple(TokenEvent(t_ns) for t_ns in decoded.t_tokens_ns)


def trace_of(
    answered: Answered,
    requests: BatchRequests,
    repetition: int,
    telemetry: Telemetry,
    computed: int | None,
) -> Trace:
    """Return one request for each prompt, all due when the first was handed over."""
    request_traces = tuple(
        RequestTrace(n_prompt_tokens=len(row), t_due_ns=answered.start_ns, events=events)
        for row, events in zip(requests.rows, answered.events, strict=True)
    )
    return Trace(
        repetition=repetition,
        requests=request_traces,
        marks=telemetry.marks,
        clock=answered.clock,
        computed=computed,
        cpu_s=telemetry.cpu_s,
        no_cpu_s=telemetry.no_cpu_s,
    )
