"""The repetitions of a run, checked, with the times that are derived from each. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from pytest_llmperf.core.metrics import batching
from pytest_llmperf.core.metrics.request_times import latency_s, succeeded, tpot_s, ttft_s
from pytest_llmperf.core.trace import RequestTrace, Trace
from pytest_llmperf.errors import InvalidRun, NoRequestSucceeded

_NS = 1e9


class OfflineWork(Protocol):
    """What is read of a workload.

    A workload whose requests have lengths of their own has `output_lengths` too, and `queued` says
    that its requests wait for one another.
    """

    @property
    def new_tokens(self) -> int:
        """Output tokens of each sequence."""


class Repetition(NamedTuple):
    """The successful requests of one trace, and what is derived from them; times in s.

    `forwards`, `padding` and `cpu_s` are None where they are not known.
    """

    requests: tuple[RequestTrace, ...]
    ttft_s: float
    latency_s: float
    wall_s: float
    decode_s: float
    n_output: int
    forwards: int | None
    padding: float | None
    cpu_s: float | None = None

    @property
    def decodes(self) -> bool:
        """Whether there is a known time after the first token of every request."""
        return self.decode_s > 0 and all(tpot_s(request) is not None for request in self.requests)

    @property
    def decode_tok_per_s(self) -> float:
        """Output tokens after each first, over the time after the first token."""
        return (self.n_output - len(self.requests)) / self.decode_s

    @property
    def tpot_s(self) -> float:
        """Mean over the requests of (end-to-end - TTFT) / (output tokens - 1)."""
        times = (tpot_s(request) for request in self.requests)
        return statistics.fmean([time_s for time_s in times if time_s is not None])


def valid_repetitions(traces: Sequence[Trace], workload: OfflineWork) -> list[Repetition]:
    """Return the repetitions in which a request succeeded.

    Raises:
        InvalidRun: no request succeeded, a derived time is not positive, or an output has another
            length than asked.
    """
    valid: list[Repetition] = []
    for trace in traces:
        requests = tuple(filter(succeeded, trace.requests))
        if requests:
            valid.append(_repetition(trace, requests))
    if not valid:
        raise _nothing_succeeded(traces)
    for trace in traces:
        _require_lengths(trace, workload)
    return valid


def _nothing_succeeded(traces: Sequence[Trace]) -> InvalidRun:
    requests = [request for trace in traces for request in trace.requests]
    failures = dict.fromkeys(request.failure or "no token came" for request in requests)
    reasons = "; ".join(failures) or "no requests"
    return NoRequestSucceeded(f"no request of {len(traces)} repetitions succeeded: {reasons}.")


def _require_lengths(trace: Trace, workload: OfflineWork) -> None:
    if not trace.token_times:
        return
    lengths: Sequence[int] | None = getattr(workload, "output_lengths", None)
    if lengths is None:
        _require_length(trace, workload.new_tokens)
    elif (reason := batching.wrong_length(trace, lengths)) is not None:
        raise InvalidRun(f"repetition {trace.repetition}: {reason}.")


def _require_length(trace: Trace, new_tokens: int) -> None:
    lengths = {request.n_output_tokens for request in trace.requests if succeeded(request)}
    if not lengths <= {new_tokens}:
        raise InvalidRun(
            f"repetition {trace.repetition}: outputs of {sorted(lengths)} tokens, "
            f"{new_tokens} were asked for."
        )


def _repetition(trace: Trace, requests: tuple[RequestTrace, ...]) -> Repetition:
    for request in requests:
        for before, after in pairwise(request.events):
            _span_s(trace, "a gap between tokens", before.t_ns, after.t_ns, or_zero=True)
    due_ns = min(request.t_due_ns for request in requests)
    first_ns = min(request.events[0].t_ns for request in requests)
    last_ns = max(request.ended_ns for request in requests)
    return Repetition(
        requests=requests,
        ttft_s=_mean_s(trace, "TTFT", map(ttft_s, requests)),
        latency_s=_mean_s(trace, "end-to-end time", map(latency_s, requests)),
        wall_s=_span_s(trace, "the time of all requests", due_ns, last_ns),
        decode_s=_span_s(trace, "decode time", first_ns, last_ns, or_zero=True),
        n_output=sum(request.n_output_tokens for request in requests),
        forwards=trace.forwards,
        padding=batching.padding_share(trace, requests),
        cpu_s=trace.cpu_s,
    )


def _mean_s(trace: Trace, title: str, times: Iterable[float]) -> float:
    return statistics.fmean([_checked_s(trace, title, time_s) for time_s in times])


def _span_s(
    trace: Trace, title: str, start_ns: int, end_ns: int, *, or_zero: bool = False
) -> float:
    return _checked_s(trace, title, (end_ns - start_ns) / _NS, or_zero=or_zero)


def _checked_s(trace: Trace, title: str, time_s: float, *, or_zero: bool = False) -> float:
    """Return a derived time. Raises InvalidRun where it is not positive."""
    if time_s < 0 or (time_s == 0 and not or_zero):
        raise InvalidRun(
            f"repetition {trace.repetition}: {title} is {time_s} s. "
            "The engine's times are not in order."
        )
    return time_s
