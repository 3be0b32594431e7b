"""From the requests of a load to quantities, pure.

Each request is one sample of the times; rates are of the whole run.

Requests that failed are data: they are counted, with their reasons, they keep no SLO, and they are
in no time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.core.metrics import saturation
from pytest_llmperf.core.metrics.latencies import Latencies
from pytest_llmperf.core.metrics.quantities import TABLE
from pytest_llmperf.core.metrics.results import Quantity, RunResult, exact
from pytest_llmperf.core.metrics.serving_summary import ServingSummary
from pytest_llmperf.core.metrics.slo import Slo, latency_s, tpot_s, ttft_s
from pytest_llmperf.core.trace import Mark, RequestTrace
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable
from pytest_llmperf.errors import InvalidRun, NoRequestSucceeded

_NS = 1e9
BLOCKS = 10
"""Equal parts of a run whose rates give the interval of its own (the method of batch means): requests follow one another and
are not independent, blocks of many nearly are."""


NO_GAPS = "the load generator keeps the times of a request's first and last token alone"
NO_SUCH = "a load on a server gives no such quantity"
"""Reason of what a load never measures: its records leave it out."""


class ServingTrace(Struct, frozen=True, kw_only=True):
    """One run of a load: its requests, and how the client did.

    Times in s; `busy_share` is the client's CPU time over wall time.

    `server` is what the server's own metrics said during the run (`core.metrics.server_metrics`),
    by name. `generator` names the program of another project that sent the requests, with its
    version; without `gaps` it kept a request's first and last token alone.
    """

    requests: tuple[RequestTrace, ...]
    loop_lag_s: tuple[float, ...] = ()
    busy_share: float = 0.0
    server: dict[str, float] = {}
    generator: str = ""
    gaps: bool = True


class _Origin(NamedTuple):
    pair: str | None
    subject: str
    context: str


class _Run(NamedTuple):
    """The requests of one run that count, those that succeeded, and its bounds."""

    requests: tuple[RequestTrace, ...]
    done: tuple[RequestTrace, ...]
    start_ns: int
    end_ns: int

    @property
    def wall_s(self) -> float:
        return (self.end_ns - self.start_ns) / _NS


def reduce_serving(
    traces: Sequence[ServingTrace],
    *,
    slo: Slo | None,
    ramp_up_s: float,
    load_s: float | None,
    open_loop: bool,
    pair: str | None = None,
    subject: str = "",
    context: str = "",
) -> RunResult:
    """Every quantity of a load; what it cannot give is NotMeasurable with its reason.

    Several traces are repetitions of an interleaved comparison (`pair`), whose rates are then
    compared one by one.

    Raises:
        InvalidRun: no request succeeded after the ramp-up, or a time is not in order.
    """
    origin = _Origin(pair, subject, context)
    runs = [_run(trace, ramp_up_s) for trace in traces]
    rest = RunResult.unmeasured(NO_SUCH)
    return replace(
        rest,
        throughput=_rate("throughput", runs, [_tokens(run) for run in runs], origin),
        total_throughput=_rate(
            "total_throughput", runs, [_all_tokens(run) for run in runs], origin
        ),
        request_throughput=_rate(
            "request_throughput", runs, [_completions(run.done) for run in runs], origin
        ),
        goodput=_goodput(runs, slo, origin),
        **_times(runs, origin, gaps=all(trace.gaps for trace in traces)),
        load_time=NotMeasurable("load_time", "nothing was loaded: the server ran already")
        if load_s is None
        else exact("load_time", load_s, subject=subject, context=context),
        serving=summary(traces, slo=slo, ramp_up_s=ramp_up_s, open_loop=open_loop),
        n_requests=sum(len(run.requests) for run in runs),
        n_failed=sum(len(run.requests) - len(run.done) for run in runs),
        subject=subject,
        context=context,
    )


def client_mark(trace: ServingTrace, ramp_up_s: float) -> Mark | None:
    """The mark "client-limited", where the client and not the server set the times of the requests that count."""
    reason = _client_limit(trace, _run(trace, ramp_up_s))
    return Mark(kind="client-limited", detail=reason) if reason else None


def summary(
    traces: Sequence[ServingTrace], *, slo: Slo | None, ramp_up_s: float, open_loop: bool
) -> ServingSummary:
    """How the load went.

    Of several runs: all their requests, the worst lateness, and the first reason for saturation.
    """
    runs = [_run(trace, ramp_up_s) for trace in traces]
    requests = [r for run in runs for r in run.requests]
    flights = [saturation.in_flight_mean(run.requests, run.start_ns, run.end_ns) for run in runs]
    saturated = [saturation.over_saturated(run.requests) for run in runs] if open_loop else []
    return ServingSummary(
        offered_rate=saturation.mean([rate for run in runs if (rate := _offered(run.requests))]),
        failures=dict(Counter(r.failure or "no token came" for r in requests if not _succeeded(r))),
        attainment=None
        if slo is None
        else saturation.mean([float(slo.met_by(r)) for r in requests]),
        lateness_p99_s=max(saturation.upper(_lateness_s(run.requests), 0.99) for run in runs),
        loop_lag_p99_s=max(saturation.upper(trace.loop_lag_s, 0.99) for trace in traces),
        busy_share=max(trace.busy_share for trace in traces),
        in_flight_mean=saturation.mean(flights),
        in_flight_max=max(saturation.in_flight_max(run.requests) for run in runs),
        saturated=next(filter(None, saturated), ""),
        n_cut=sum(len(trace.requests) for trace in traces) - len(requests),
        server=_merged(traces),
        generator=next((trace.generator for trace in traces), ""),
    )


# Requests


def _run(trace: ServingTrace, ramp_up_s: float) -> _Run:
    first_ns = min((r.t_due_ns for r in trace.requests), default=0)
    counted = tuple(r for r in trace.requests if r.t_due_ns >= first_ns + ramp_up_s * _NS)
    done = tuple(r for r in counted if _succeeded(r))
    if not done:
        failures = Counter(r.failure or "no token came" for r in counted)
        said = "; ".join(f"{reason} ({n} times)" for reason, n in failures.most_common(5))
        raise NoRequestSucceeded(
            f"no request of {len(counted)} succeeded: {said or 'none was due after the ramp-up'}."
        )
    for request in done:
        _require_order(request)
    start_ns = min(r.t_sent_ns or r.t_due_ns for r in counted)
    return _Run(counted, done, start_ns, max(r.events[-1].t_ns for r in done))


def _succeeded(request: RequestTrace) -> bool:
    return bool(request.events) and request.failure is None


def _require_order(request: RequestTrace) -> None:
    times = [request.t_due_ns, *(e.t_ns for e in request.events)]
    if any(after < before for before, after in pairwise(times)):
        raise InvalidRun(
            "the times of a request are not in order: a token came before the one before it, or before it was due."
        )


def _client_limit(trace: ServingTrace, run: _Run) -> str:
    waits = [ttft_s(r) for r in run.done]
    reason = saturation.client_limited(
        _lateness_s(run.requests), trace.loop_lag_s, waits, trace.busy_share
    )
    return (
        f"{reason}: the client was the limit, not the server. Lower the rate, or give it a core of its own"
        if reason
        else ""
    )


def _lateness_s(requests: Iterable[RequestTrace]) -> list[float]:
    return [(r.t_sent_ns - r.t_due_ns) / _NS for r in requests if r.t_sent_ns]


def _offered(requests: Sequence[RequestTrace]) -> float:
    """Requests due a second, from the first to the last."""
    due = sorted(r.t_due_ns for r in requests)
    return (len(due) - 1) * _NS / (due[-1] - due[0]) if len(due) > 1 and due[-1] > due[0] else 0.0


# Rates: what counts, with the time at which it counts


def _tokens(run: _Run) -> list[tuple[int, float]]:
    return [(e.t_ns, float(e.n_tokens)) for r in run.done for e in r.events]


def _all_tokens(run: _Run) -> list[tuple[int, float]]:
    """A prompt counts when its first token comes."""
    return _tokens(run) + [(r.events[0].t_ns, float(r.n_prompt_tokens)) for r in run.done]


def _completions(requests: Iterable[RequestTrace]) -> list[tuple[int, float]]:
    return [(r.events[-1].t_ns, 1.0) for r in requests]


def _goodput(runs: Sequence[_Run], slo: Slo | None, origin: _Origin) -> Quantity:
    if slo is None:
        return NotMeasurable("goodput", "this workload has no SLO")
    return _rate(
        "goodput",
        runs,
        [_completions(r for r in run.done if slo.met_by(r)) for run in runs],
        origin,
    )


def _rate(
    name: str, runs: Sequence[_Run], counted: Sequence[list[tuple[int, float]]], origin: _Origin
) -> Quantity:
    """Amount over wall time.

    Of one run, with the interval of its blocks' mean; of several, the median of theirs.
    """
    if any(run.wall_s <= 0 for run in runs):
        return NotMeasurable(
            name,
            "one message in all: there is no time between the first send and the last completion",
        )
    row = TABLE[name]
    rates = [
        sum(amount for _, amount in each) / run.wall_s
        for run, each in zip(runs, counted, strict=True)
    ]
    common: dict[str, Any] = {
        "direction": row.direction,
        "subject": origin.subject,
        "context": origin.context,
    }
    if len(rates) > 1:
        return Estimate.of_samples(name, tuple(rates), row.unit, pair=origin.pair, **common)
    low, high = stats.mean_interval(block_rates(counted[0], runs[0].start_ns, runs[0].end_ns)) or (
        0.0,
        math.inf,
    )
    return Estimate(
        name=name,
        value=rates[0],
        low=max(0.0, min(low, rates[0])),
        high=max(high, rates[0]),
        n=BLOCKS,
        unit=row.unit,
        statistic="mean",
        counted="block",
        **common,
    )


def block_rates(counted: Sequence[tuple[int, float]], start_ns: int, end_ns: int) -> list[float]:
    """Amount a second in each of the equal blocks between start and end.

    Their mean is the rate of the whole.
    """
    length_ns = (end_ns - start_ns) / BLOCKS
    sums = [0.0] * BLOCKS
    for t_ns, amount in counted:
        sums[min(BLOCKS - 1, max(0, int((t_ns - start_ns) / length_ns)))] += amount
    return [amount * _NS / length_ns for amount in sums]


# Times


def _times(runs: Sequence[_Run], origin: _Origin, *, gaps: bool) -> dict[str, Any]:
    """In the order in which requests were due: their autocorrelation widens the intervals.

    Pairs of a comparison are the runs.
    """
    done = [r for run in runs for r in sorted(run.done, key=lambda r: r.t_due_ns)]
    found: dict[str, list[float]] = {
        "ttft": [ttft_s(r) for r in done],
        "latency": [latency_s(r) for r in done],
        "tpot": [t for r in done if (t := tpot_s(r)) is not None],
        "itl": [gap for r in done for gap in gaps_s(r)] if gaps else [],
    }
    lacking = "no request had a token after its first message" if gaps else NO_GAPS
    return {
        name: Latencies(name, tuple(samples), subject=origin.subject, context=origin.context)
        if samples
        else NotMeasurable(name, lacking)
        for name, samples in found.items()
    }


def gaps_s(request: RequestTrace) -> list[float]:
    """Gaps between consecutive tokens; a message of k tokens is k gaps of 1/k.

    What came with the first has its time in TTFT.
    """
    return [
        gap
        for before, after in pairwise(request.events)
        for gap in [(after.t_ns - before.t_ns) / after.n_tokens / _NS] * after.n_tokens
    ]


def _merged(traces: Sequence[ServingTrace]) -> dict[str, float]:
    """Counts add up over the runs; of everything else the largest."""
    merged: dict[str, float] = {}
    for trace in traces:
        for name, value in trace.server.items():
            merged[name] = (
                merged.get(name, 0.0) + value
                if name == "preemptions"
                else max(merged.get(name, 0.0), value)
            )
    return merged
