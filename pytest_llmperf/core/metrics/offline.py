"""From traces to quantities.

One repetition gives one sample of each rate and time; ITL pools the gaps. Pure.

Offline, the requests of a repetition run as one batch and share their times, so that only
repetitions are independent: TTFT, TPOT and latency take the mean over a repetition's requests as
its sample. (In open loop, each request will be one.) Requests that failed are counted and in no
number.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from pytest_llmperf.core.metrics import batching, readings
from pytest_llmperf.core.metrics.device_use import NAMES as DEVICE_USE
from pytest_llmperf.core.metrics.device_use import device_use
from pytest_llmperf.core.metrics.origin import (
    NO_ORIGIN,
    Origin,
    distribution,
    exact,
    not_measurable,
    sampled,
)
from pytest_llmperf.core.metrics.readings import NO_READINGS, Readings, cpu_time_per_token
from pytest_llmperf.core.metrics.repetitions import OfflineWork, Repetition, valid_repetitions
from pytest_llmperf.core.metrics.request_times import NOT_TIMED, UNKNOWN_SPAN, gaps_s, succeeded
from pytest_llmperf.core.metrics.results import (
    NO_SERVER,
    Memory,
    Quantity,
    RunResult,
    Startup,
    Times,
)
from pytest_llmperf.core.metrics.servers import life
from pytest_llmperf.core.trace import RequestTrace, Trace
from pytest_llmperf.core.verdicts.estimate import NotMeasurable
from pytest_llmperf.core.verdicts.processes import ALIKE

ONLY_ENDS_SEEN = "the times of tokens were not seen, only the end of each request"
NO_DECODE = "one output message: there is no time after the first token"
NO_PROPOSALS = "nothing proposes tokens here: each forward pass gives one token a sequence"
NOT_COMPARED = "it was not compared with the same model on fewer devices: llm.compare(baseline, …)"

_PREFILL = ("prefill_throughput", "ttft")
_DECODE = ("decode_throughput", "tpot", "itl")
_MEANINGLESS_IN_A_QUEUE = ("prefill_throughput", "decode_throughput", *DEVICE_USE)

Quantities = dict[str, Any]
"""Quantities by name: each an Estimate, Latencies or NotMeasurable, as its field of RunResult."""

_COUNTED_BY_SERVERS = ("preemptions", "unpreempted", "speculative_acceptance", "prefix_hits")

_NEVER_OFFLINE: Quantities = {
    "goodput": NotMeasurable("goodput", "this workload has no SLO"),
    **not_measurable(_COUNTED_BY_SERVERS, NO_SERVER),
    **not_measurable(("speed_up", "efficiency"), NOT_COMPARED),
}


def reduce(
    traces: Sequence[Trace],
    workload: OfflineWork,
    around: Readings = NO_READINGS,
    origin: Origin = NO_ORIGIN,
) -> RunResult:
    """Return every quantity of a run.

    A quantity that cannot be derived is NotMeasurable with its reason. `traces` are the valid
    repetitions in the order in which they were measured; `around` is what was read outside them.

    Raises:
        InvalidRun: no request succeeded, a derived time is not positive, or an output has another
            length than asked.
    """
    repetitions = valid_repetitions(traces, workload)
    origin = origin.of_counts([any(map(succeeded, trace.requests)) for trace in traces])
    quantities = _NEVER_OFFLINE | _rates(repetitions, origin) | _read_once(around, origin)
    quantities["cpu_time_per_token"] = cpu_time_per_token(
        [(repetition.cpu_s, repetition.n_output) for repetition in repetitions],
        next((trace.no_cpu_s for trace in traces if trace.no_cpu_s), ""),
        origin,
    )
    if all(trace.token_times for trace in traces):
        quantities |= _speed(repetitions, origin)
        quantities |= device_use(repetitions, around, origin)
    else:
        quantities |= not_measurable((*_PREFILL, *_DECODE, *DEVICE_USE), ONLY_ENDS_SEEN)
    if getattr(workload, "queued", False):
        quantities |= not_measurable(_MEANINGLESS_IN_A_QUEUE, batching.QUEUED)
    n_requests = sum(len(trace.requests) for trace in traces)
    return RunResult(
        **quantities,
        n_requests=n_requests,
        n_failed=n_requests - sum(len(repetition.requests) for repetition in repetitions),
        **origin.texts,
    )


def _rates(repetitions: Sequence[Repetition], origin: Origin) -> Quantities:
    """Return what needs no times of tokens."""
    return {
        "throughput": sampled("throughput", (r.n_output / r.wall_s for r in repetitions), origin),
        "latency": distribution("latency", [r.latency_s for r in repetitions], origin),
        "request_throughput": sampled(
            "request_throughput", (len(r.requests) / r.wall_s for r in repetitions), origin
        ),
        "total_throughput": _total_throughput(repetitions, origin),
        "padding": _padding(repetitions, origin),
        "acceptance_length": _acceptance_length(repetitions, origin),
    }


def _total_throughput(repetitions: Sequence[Repetition], origin: Origin) -> Quantity:
    rates: list[float] = []
    for repetition in repetitions:
        n_tokens = batching.total_tokens(repetition.requests)
        if n_tokens is None:
            return NotMeasurable("total_throughput", batching.UNKNOWN_PROMPTS)
        rates.append(n_tokens / repetition.wall_s)
    return sampled("total_throughput", rates, origin)


def _padding(repetitions: Sequence[Repetition], origin: Origin) -> Quantity:
    shares = [repetition.padding for repetition in repetitions if repetition.padding is not None]
    if len(shares) < len(repetitions):
        return NotMeasurable("padding", batching.UNKNOWN_POSITIONS)
    return exact("padding", statistics.fmean(shares), origin)


def _acceptance_length(repetitions: Sequence[Repetition], origin: Origin) -> Quantity:
    lengths: list[float] = []
    for repetition in repetitions:
        if not repetition.forwards:
            return NotMeasurable("acceptance_length", NO_PROPOSALS)
        n_output = repetition.n_output / len(repetition.requests)
        lengths.append(n_output / repetition.forwards)
    # A count: processes do not differ in it.
    return sampled("acceptance_length", lengths, origin._replace(processes=ALIKE, known={}))


def _speed(repetitions: Sequence[Repetition], origin: Origin) -> Quantities:
    """Return what needs the times of tokens."""
    prefill: Quantities = {
        "prefill_throughput": sampled(
            "prefill_throughput", (_n_prompt(r) / r.ttft_s for r in repetitions), origin
        ),
        "ttft": distribution("ttft", [r.ttft_s for r in repetitions], origin),
    }
    return prefill | _decode_speed(repetitions, origin)


def _decode_speed(repetitions: Sequence[Repetition], origin: Origin) -> dict[str, Quantity | Times]:
    requests = [request for repetition in repetitions for request in repetition.requests]
    if any(request.untimed in UNKNOWN_SPAN for request in requests):
        return dict(not_measurable(_DECODE, NOT_TIMED))
    if not all(repetition.decodes for repetition in repetitions):
        return dict(not_measurable(_DECODE, NO_DECODE))
    return {
        "decode_throughput": sampled(
            "decode_throughput", (r.decode_tok_per_s for r in repetitions), origin
        ),
        "tpot": distribution("tpot", [r.tpot_s for r in repetitions], origin),
        "itl": _itl(repetitions, requests, origin),
    }


def _itl(
    repetitions: Sequence[Repetition], requests: Sequence[RequestTrace], origin: Origin
) -> Times:
    if any(request.untimed for request in requests):
        return NotMeasurable("itl", NOT_TIMED)
    gaps_by_repetition = [list(_gaps_s(repetition)) for repetition in repetitions]
    gaps = [gap for gaps in gaps_by_repetition for gap in gaps]
    return distribution("itl", gaps, origin.of_counts(list(map(len, gaps_by_repetition))))


def _n_prompt(repetition: Repetition) -> int:
    return sum(request.n_prompt_tokens for request in repetition.requests)


def _gaps_s(repetition: Repetition) -> Iterable[float]:
    """Requests of a batch that step together have one schedule, which counts once."""
    for events in dict.fromkeys(request.events for request in repetition.requests):
        yield from gaps_s(events)


def _read_once(around: Readings, origin: Origin) -> Quantities:
    return {
        "collectives": readings.collectives(around.collectives, origin),
        "memory": Memory.of(around.memory, origin),
        "energy": readings.energy(around.energy, origin),
        "load_time": readings.load_time(around.load_s, "nothing was loaded", origin),
        "startup": Startup.unmeasured(NO_SERVER)
        if around.startup is None
        else life.startup(around.startup, origin),
    }
