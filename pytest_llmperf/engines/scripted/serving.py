"""A load on a scripted model, in virtual time: a queue before so many slots, one request each, at the script's times."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from pytest_llmperf.core.loaded import ServingRun
from pytest_llmperf.core.metrics.serving import ServingTrace
from pytest_llmperf.core.trace import Mark, RequestTrace, TokenEvent
from pytest_llmperf.engines.scripted.options import ScriptedOptions
from pytest_llmperf.engines.scripted.virtual_clock import VirtualClock
from pytest_llmperf.workloads import Serve


def serve(options: ScriptedOptions, work: Serve, clock: VirtualClock, factor: float) -> ServingRun:
    """One run. First come, first served; a request holds its slot from its start to its last token.

    Open loop: requests are due when the workload says. Closed loop: when the line's last request is
    over.
    """
    start_s = clock.advance_ns(0) / 1e9
    times = (
        _open(options, work, factor) if work.concurrency is None else _closed(options, work, factor)
    )
    requests = tuple(
        _request(options, work, start_s + due_s, start_s + begun_s, factor)
        for due_s, begun_s in times
    )
    last_ns = max((r.t_end_ns for r in requests), default=0)
    clock.advance_ns(max(0, last_ns - round(start_s * 1e9)))
    server = {"preemptions": float(options.preemptions), "prefix_hit_share": 0.0}
    trace = ServingTrace(
        requests=requests, loop_lag_s=(options.late_s,), busy_share=0.1, server=server
    )
    return ServingRun(
        trace=trace,
        marks=tuple(Mark(kind=kind, detail="the script says so") for kind in options.marks),
        counted="ids",
    )


def _open(options: ScriptedOptions, work: Serve, factor: float) -> Iterable[tuple[float, float]]:
    """Due and start of service of each request; a heap holds when each slot is free."""
    free = [0.0] * options.slots
    for due_s in work.due_s():
        begun_s = due_s if not free else max(due_s, heapq.heappop(free))
        if options.slots:
            heapq.heappush(free, begun_s + _service_s(options, work) * factor)
        yield due_s, begun_s


def _closed(options: ScriptedOptions, work: Serve, factor: float) -> Iterable[tuple[float, float]]:
    lines = [0.0] * (work.concurrency or 1)
    free = [0.0] * (options.slots or len(lines))
    sent = 0
    while (work.requests is None or sent < work.requests) and (
        work.duration is None or lines[0] < work.duration
    ):
        due_s = heapq.heappop(lines)
        begun_s = max(due_s, heapq.heappop(free))
        end_s = begun_s + _service_s(options, work) * factor
        heapq.heappush(free, end_s)
        heapq.heappush(lines, end_s)
        sent += 1
        yield due_s, begun_s


def _service_s(options: ScriptedOptions, work: Serve) -> float:
    return options.ttft_s + (work.max_new_tokens - 1) * options.tpot_s


def _request(
    options: ScriptedOptions, work: Serve, due_s: float, begun_s: float, factor: float
) -> RequestTrace:
    tokens = (
        begun_s + (options.ttft_s + i * options.tpot_s) * factor for i in range(work.max_new_tokens)
    )
    events = tuple(TokenEvent(round(at * 1e9)) for at in tokens)
    return RequestTrace(
        n_prompt_tokens=work.prompt_tokens or 1,
        t_due_ns=round(due_s * 1e9),
        events=events,
        t_sent_ns=round((due_s + options.late_s) * 1e9),
        t_end_ns=events[-1].t_ns,
    )
