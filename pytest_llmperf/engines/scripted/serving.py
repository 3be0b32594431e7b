"""Traffic on a scripted model, in virtual time: a queue before so many slots, one request each."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from pytest_llmperf.core.loaded import ServingRun
from pytest_llmperf.core.metrics.serving import ServingTrace
from pytest_llmperf.core.trace import RequestTrace, TokenEvent
from pytest_llmperf.engines.scripted.options import ScriptedOptions
from pytest_llmperf.engines.scripted.timing import NO_CPU_TIME, cpu_s, marks
from pytest_llmperf.engines.scripted.virtual_clock import VirtualClock
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import Serve


def serve(options: ScriptedOptions, work: Serve, clock: VirtualClock, factor: float) -> ServingRun:
    """Serve the traffic once, at the script's times.

    The first to come is served first; a request holds its slot from its start to its last token.
    Open loop: requests are due when the workload says. Closed loop: when the line's last request is
    over.
    """
    if work.conversations is not None:
        raise UsageError(
            "the scripted engine plays no conversations: they take a server that answers."
        )
    start_ns = clock.advance_ns(0)
    requests = _requests(options, work, start_ns / 1e9, factor)
    last_ns = max((request.t_end_ns for request in requests), default=0)
    clock.advance_ns(max(0, last_ns - start_ns))
    trace = ServingTrace(
        requests=requests,
        loop_lag_s=(options.late_s,),
        busy_share=0.1,
        server={"preemptions": float(options.preemptions), "prefix_hit_share": 0.0},
        cpu_s=cpu_s(options, requests),
        no_cpu_s=NO_CPU_TIME if options.cpu_s_per_token is None else "",
    )
    return ServingRun(trace=trace, marks=marks(options), counted="ids")


def _requests(
    options: ScriptedOptions, work: Serve, start_s: float, factor: float
) -> tuple[RequestTrace, ...]:
    service_s = _service_s(options, work) * factor
    times_s = _open if work.concurrency is None else _closed
    return tuple(
        _request(options, work, start_s + due_s, start_s + begun_s, factor)
        for due_s, begun_s in times_s(work, options.slots, service_s)
    )


def _open(work: Serve, slots: int, service_s: float) -> Iterable[tuple[float, float]]:
    """Yield when each request is due and when its service starts, in seconds.

    A heap holds when each slot is free; 0 slots stand for any number.
    """
    free_s = [0.0] * slots
    for due_s in work.due_s():
        begun_s = max(due_s, heapq.heappop(free_s)) if free_s else due_s
        if slots:
            heapq.heappush(free_s, begun_s + service_s)
        yield due_s, begun_s


def _closed(work: Serve, slots: int, service_s: float) -> Iterable[tuple[float, float]]:
    """Yield the same for lines that each wait for the end of their last request."""
    lines_s = [0.0] * (work.concurrency or 1)
    free_s = [0.0] * (slots or len(lines_s))
    n_sent = 0
    while _goes_on(work, n_sent, lines_s[0]):
        due_s = heapq.heappop(lines_s)
        begun_s = max(due_s, heapq.heappop(free_s))
        heapq.heappush(free_s, begun_s + service_s)
        heapq.heappush(lines_s, begun_s + service_s)
        n_sent += 1
        yield due_s, begun_s


def _goes_on(work: Serve, n_sent: int, next_s: float) -> bool:
    """Whether another request is sent: there are some left, and the time is not over."""
    if work.requests is not None and n_sent >= work.requests:
        return False
    return work.duration is None or next_s < work.duration


def _service_s(options: ScriptedOptions, work: Serve) -> float:
    return options.ttft_s + (work.max_new_tokens - 1) * options.tpot_s


def _request(
    options: ScriptedOptions, work: Serve, due_s: float, begun_s: float, factor: float
) -> RequestTrace:
    times_s = (
        begun_s + (options.ttft_s + index * options.tpot_s) * factor
        for index in range(work.max_new_tokens)
    )
    events = tuple(TokenEvent(round(time_s * 1e9)) for time_s in times_s)
    return RequestTrace(
        n_prompt_tokens=work.prompt_tokens or 1,
        t_due_ns=round(due_s * 1e9),
        events=events,
        t_sent_ns=round((due_s + options.late_s) * 1e9),
        t_end_ns=events[-1].t_ns,
    )
