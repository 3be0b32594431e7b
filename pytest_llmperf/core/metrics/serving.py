"""From the requests of a run on a server to quantities, pure.

Each request is one sample of the times; rates are of the whole run.

Requests that failed are data: they are counted, with their reasons, they keep no SLO, and they are
in no time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.core.metrics import readings, saturation
from pytest_llmperf.core.metrics.origin import NO_ORIGIN, Origin, distribution
from pytest_llmperf.core.metrics.readings import cpu_time_per_token
from pytest_llmperf.core.metrics.request_times import (
    NOT_TIMED,
    UNKNOWN_GAPS,
    UNKNOWN_SPAN,
    gaps_s,
    latency_s,
    succeeded,
    tpot_s,
    ttft_s,
)
from pytest_llmperf.core.metrics.results import Quantity, RunResult, Times
from pytest_llmperf.core.metrics.servers.life import (
    UNKNOWN_LIFE,
    ServerLife,
    kv_tokens,
    of_traffic,
    startup,
)
from pytest_llmperf.core.metrics.servers.turns import by_turn
from pytest_llmperf.core.metrics.serving_rates import Counted, rate
from pytest_llmperf.core.metrics.serving_summary import ServingSummary
from pytest_llmperf.core.metrics.slo import Slo
from pytest_llmperf.core.trace import Mark, RequestTrace
from pytest_llmperf.core.verdicts.estimate import NotMeasurable
from pytest_llmperf.errors import InvalidRun, NoRequestSucceeded

_NS = 1e9
COUNTERS = frozenset({"preemptions", "drafted", "accepted", "prefix_queries", "prefix_hits"})

NO_GAPS = "the load generator keeps the times of a request's first and last token alone"
NO_SECOND_MESSAGE = "no request had a token after its first message"
UNTIMED_SHARE = 0.1
"""Share of the requests whose tokens may have no times before a time of tokens is not measured."""

NO_SUCH = "a load on a server gives no such quantity"
"""Reason of what traffic on a server never measures: its records leave it out."""


class ServingTrace(Struct, frozen=True, kw_only=True):
    """One run of traffic: its requests, and how the client did.

    Times in s; `busy_share` is the client's CPU time over wall time.

    `server` is what the server's own metrics said during the run (`core.metrics.server_metrics`),
    by name. `generator` names the program of another project that sent the requests, with its
    version; without `gaps` it kept a request's first and last token alone. `cpu_s` is the CPU time
    of the server's processes over the run, None where `no_cpu_s` says why.
    """

    requests: tuple[RequestTrace, ...]
    loop_lag_s: tuple[float, ...] = ()
    busy_share: float = 0.0
    server: dict[str, float] = {}
    generator: str = ""
    gaps: bool = True
    cpu_s: float | None = None
    no_cpu_s: str = ""


class ServingWork(Protocol):
    """What is read of a workload (`Serve`)."""

    @property
    def slo(self) -> Slo | None:
        """Limits that goodput counts by."""

    @property
    def ramp_up(self) -> float:
        """Seconds from the first request on in which requests do not count."""

    @property
    def open_loop(self) -> bool:
        """Whether requests come whatever the server does."""


class _Run(NamedTuple):
    """The requests of one run that count, those of them that succeeded, and the run's bounds."""

    requests: tuple[RequestTrace, ...]
    successes: tuple[RequestTrace, ...]
    start_ns: int
    end_ns: int


def reduce_serving(
    traces: Sequence[ServingTrace],
    workload: ServingWork,
    load_s: float | None = None,
    origin: Origin = NO_ORIGIN,
    life: ServerLife = UNKNOWN_LIFE,
) -> RunResult:
    """Return every quantity of traffic; what it cannot give is NotMeasurable with its reason.

    Several traces are repetitions of an interleaved comparison (`origin.pair`), whose rates are
    then compared one by one. `load_s` is None where the server ran already, and `life` has the rest
    of its start.

    Raises:
        InvalidRun: no request succeeded after the ramp-up, or a time is not in order.
    """
    runs = [_run(trace, workload.ramp_up) for trace in traces]
    has_gaps = all(trace.gaps for trace in traces)
    unmeasured = RunResult.unmeasured(NO_SUCH)
    n_sent = sum(len(trace.requests) for trace in traces)
    return replace(
        unmeasured,
        **of_traffic([trace.server for trace in traces], n_sent, origin),
        memory=replace(unmeasured.memory, kv_tokens=kv_tokens(life.memory, origin)),
        startup=startup(life.startup, origin),
        **_rates(runs, workload.slo, origin),
        **_times(runs, origin, has_gaps=has_gaps),
        cpu_time_per_token=_cpu_time_per_token(traces, origin),
        load_time=readings.load_time(load_s, "nothing was loaded: the server ran already", origin),
        serving=_summary(traces, runs, workload),
        n_requests=sum(len(run.requests) for run in runs),
        n_failed=sum(len(run.requests) - len(run.successes) for run in runs),
        **origin.texts,
    )


def _cpu_time_per_token(traces: Sequence[ServingTrace], origin: Origin) -> Quantity:
    """Return the server's CPU time over all output tokens of a run, those of its ramp-up too."""
    runs = [
        (trace.cpu_s, sum(request.n_output_tokens for request in trace.requests))
        for trace in traces
    ]
    why = next((trace.no_cpu_s for trace in traces if trace.no_cpu_s), "")
    return cpu_time_per_token(runs, why, origin)


def client_mark(trace: ServingTrace, ramp_up_s: float) -> Mark | None:
    """Return the mark "client-limited", where the client and not the server set the times.

    Only the requests that count are looked at.
    """
    run = _run(trace, ramp_up_s)
    reason = saturation.client_limited(
        _lateness_s(run.requests),
        trace.loop_lag_s,
        [ttft_s(request) for request in run.successes],
        trace.busy_share,
    )
    if not reason:
        return None
    detail = (
        f"{reason}: the client was the limit, not the server. "
        "Lower the rate, or give it a core of its own"
    )
    return Mark(kind="client-limited", detail=detail)


# Requests


def _run(trace: ServingTrace, ramp_up_s: float) -> _Run:
    counted = _after_ramp_up(trace.requests, ramp_up_s)
    successes = tuple(filter(succeeded, counted))
    if not successes:
        raise _nothing_succeeded(counted)
    for request in successes:
        _require_order(request)
    return _Run(
        requests=counted,
        successes=successes,
        start_ns=min(request.t_sent_ns or request.t_due_ns for request in counted),
        end_ns=max(request.ended_ns for request in successes),
    )


def _after_ramp_up(requests: Sequence[RequestTrace], ramp_up_s: float) -> tuple[RequestTrace, ...]:
    first_ns = min((request.t_due_ns for request in requests), default=0)
    count_from_ns = first_ns + ramp_up_s * _NS
    return tuple(request for request in requests if request.t_due_ns >= count_from_ns)


def _nothing_succeeded(requests: Sequence[RequestTrace]) -> InvalidRun:
    failures = _failures(requests).most_common(5)
    reasons = "; ".join(f"{reason} ({n} times)" for reason, n in failures)
    return NoRequestSucceeded(
        f"no request of {len(requests)} succeeded: {reasons or 'none was due after the ramp-up'}."
    )


def _failures(requests: Iterable[RequestTrace]) -> Counter[str]:
    return Counter(
        request.failure or "no token came" for request in requests if not succeeded(request)
    )


def _require_order(request: RequestTrace) -> None:
    if any(after < before for before, after in pairwise(_times_ns(request))):
        raise InvalidRun(
            "the times of a request are not in order: a token came before the one before it, "
            "or before it was due."
        )


def _times_ns(request: RequestTrace) -> list[int]:
    """Return when a request was due, and when each of its messages came."""
    return [request.t_due_ns, *(event.t_ns for event in request.events)]


def _lateness_s(requests: Iterable[RequestTrace]) -> list[float]:
    return [
        (request.t_sent_ns - request.t_due_ns) / _NS for request in requests if request.t_sent_ns
    ]


# Rates: what counts, with the time at which it counts


def _rates(runs: Sequence[_Run], slo: Slo | None, origin: Origin) -> dict[str, Quantity]:
    counts: dict[str, Callable[[RequestTrace], list[tuple[int, float]]]] = {
        "throughput": _output_tokens,
        "total_throughput": _all_tokens,
        "request_throughput": _completion,
    }
    if slo is not None:
        counts["goodput"] = lambda request: _completion(request) if slo.met_by(request) else []
    rates = {
        name: rate(name, [_counted(run, amounts) for run in runs], origin)
        for name, amounts in counts.items()
    }
    return {"goodput": NotMeasurable("goodput", "this workload has no SLO"), **rates}


def _counted(run: _Run, amounts: Callable[[RequestTrace], list[tuple[int, float]]]) -> Counted:
    """Collect the amounts of the requests of a run that succeeded."""
    counted = [amount for request in run.successes for amount in amounts(request)]
    return Counted(counted, run.start_ns, run.end_ns)


def _output_tokens(request: RequestTrace) -> list[tuple[int, float]]:
    return [(event.t_ns, float(event.n_tokens)) for event in request.events]


def _all_tokens(request: RequestTrace) -> list[tuple[int, float]]:
    """Count a prompt when its first token comes."""
    prompt = (request.events[0].t_ns, float(request.n_prompt_tokens))
    return [prompt, *_output_tokens(request)]


def _completion(request: RequestTrace) -> list[tuple[int, float]]:
    return [(request.ended_ns, 1.0)]


# Times


def _times(runs: Sequence[_Run], origin: Origin, *, has_gaps: bool) -> dict[str, Times]:
    """Return times in the order in which requests were due.

    Their autocorrelation widens the intervals. The pairs of a comparison are the runs, not the
    requests: times carry no pair.
    """
    of_runs = [_times_of(_by_due_time(run.successes), has_gaps=has_gaps) for run in runs]
    requests = [request for run in runs for request in run.successes]
    reasons = {
        "tpot": _reason(_timed(requests, UNKNOWN_SPAN), has_gaps=has_gaps),
        "itl": _reason(_timed(requests, UNKNOWN_GAPS), has_gaps=has_gaps),
    }
    return {
        name: _distribution(name, [times[name] for times in of_runs], origin, reasons.get(name, ""))
        for name in of_runs[0]
    }


def _times_of(requests: Sequence[RequestTrace], *, has_gaps: bool) -> dict[str, list[float]]:
    """Return the times of one run's requests by name, in s."""
    spans = _timed(requests, UNKNOWN_SPAN)
    with_gaps = _timed(requests, UNKNOWN_GAPS)
    return {
        "ttft": [ttft_s(request) for request in requests],
        "latency": [latency_s(request) for request in requests],
        "tpot": _tpots_s(spans),
        "itl": [gap for request in with_gaps for gap in gaps_s(request.events)] if has_gaps else [],
    }


def _distribution(name: str, of_runs: Sequence[list[float]], origin: Origin, reason: str) -> Times:
    """Return the times of all runs, NotMeasurable for `reason` where there are none."""
    times = [time_s for run in of_runs for time_s in run]
    if not times:
        return NotMeasurable(name, reason)
    counts = [len(run) for run in of_runs]
    return distribution(name, times, origin._replace(pair=None).of_counts(counts))


def _timed(requests: Sequence[RequestTrace], unknown: Sequence[str]) -> list[RequestTrace]:
    """Return the requests whose times are known; none where those of too many are not."""
    timed = [request for request in requests if request.untimed not in unknown]
    return timed if len(requests) - len(timed) <= UNTIMED_SHARE * len(requests) else []


def _reason(timed: Sequence[RequestTrace], *, has_gaps: bool) -> str:
    """Return why there is no time between tokens."""
    if not timed:
        return NOT_TIMED
    return NO_SECOND_MESSAGE if has_gaps else NO_GAPS


def _by_due_time(requests: Iterable[RequestTrace]) -> list[RequestTrace]:
    return sorted(requests, key=lambda request: request.t_due_ns)


def _tpots_s(requests: Iterable[RequestTrace]) -> list[float]:
    times = (tpot_s(request) for request in requests)
    return [time_s for time_s in times if time_s is not None]


# How the traffic went


def _summary(
    traces: Sequence[ServingTrace], runs: Sequence[_Run], workload: ServingWork
) -> ServingSummary:
    """Return the worst lateness of several runs, and the first reason for saturation.

    Everything else is of all their requests.
    """
    requests = [request for run in runs for request in run.requests]
    return ServingSummary(
        offered_rate=_offered_rate(runs),
        failures=dict(_failures(requests)),
        attainment=_attainment(requests, workload.slo),
        lateness_p99_s=max(_p99(_lateness_s(run.requests)) for run in runs),
        loop_lag_p99_s=max(_p99(trace.loop_lag_s) for trace in traces),
        busy_share=max(trace.busy_share for trace in traces),
        in_flight_mean=saturation.mean([_in_flight_mean(run) for run in runs]),
        in_flight_max=max(saturation.in_flight_max(run.requests) for run in runs),
        saturated=_saturated(runs) if workload.open_loop else "",
        n_cut=sum(len(trace.requests) for trace in traces) - len(requests),
        server=_merged(traces),
        generator=traces[0].generator,
        **by_turn([request for run in runs for request in run.successes]),
    )


def _p99(values: Sequence[float]) -> float:
    return saturation.upper(values, 0.99)


def _offered_rate(runs: Sequence[_Run]) -> float:
    rates = (_due_per_s(run.requests) for run in runs)
    return saturation.mean([per_s for per_s in rates if per_s > 0])


def _due_per_s(requests: Sequence[RequestTrace]) -> float:
    """Return the requests due a second, from the first to the last; 0 where there is no time."""
    due = sorted(request.t_due_ns for request in requests)
    if due[-1] <= due[0]:
        return 0.0
    return (len(due) - 1) * _NS / (due[-1] - due[0])


def _attainment(requests: Sequence[RequestTrace], slo: Slo | None) -> float | None:
    if slo is None:
        return None
    return saturation.mean([float(slo.met_by(request)) for request in requests])


def _in_flight_mean(run: _Run) -> float:
    return saturation.in_flight_mean(run.requests, run.start_ns, run.end_ns)


def _saturated(runs: Sequence[_Run]) -> str:
    reasons = (saturation.over_saturated(run.requests) for run in runs)
    return next(filter(None, reasons), "")


def _merged(traces: Sequence[ServingTrace]) -> dict[str, float]:
    """Add up the counts of the runs, and take the largest of everything else."""
    merged: dict[str, float] = {}
    for trace in traces:
        for name, value in trace.server.items():
            before = merged.get(name, 0.0)
            merged[name] = before + value if name in COUNTERS else max(before, value)
    return merged
