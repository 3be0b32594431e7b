"""From traces to quantities.

One repetition gives one sample of each rate and time; ITL pools the gaps. Pure.

Offline, the requests of a repetition run as one batch and share their times, so that only
repetitions are independent: TTFT, TPOT and latency take the mean over a repetition's requests as
its sample. (In open loop, each request will be one.) Requests that failed are counted and in no
number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from pytest_llmperf.core.metrics import batching
from pytest_llmperf.core.metrics.latencies import Latencies
from pytest_llmperf.core.metrics.quantities import TABLE, Metric
from pytest_llmperf.core.metrics.results import Energy, Memory, Quantity, RunResult, Times, exact
from pytest_llmperf.core.trace import (
    Ceilings,
    EnergyReading,
    MemoryGauges,
    RequestTrace,
    StepCost,
    Trace,
)
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable
from pytest_llmperf.errors import InvalidRun, NoRequestSucceeded

__all__ = ["TABLE", "Metric", "reduce"]

MIN_ENERGY_S = 3.0
_NS = 1e9
_TOKEN_TIMES = ("prefill_throughput", "ttft", "decode_throughput", "tpot", "itl")
_USE = ("mbu", "mfu", "prefill_mfu")
_ALONE = "it was not compared with the same model on fewer devices: llm.compare(baseline, …)"


class OfflineWork(Protocol):
    """What is read of a workload.

    One whose requests have lengths of their own says so by `output_lengths`, and by `queued` that
    they wait for one another.
    """

    @property
    def new_tokens(self) -> int:
        """Output tokens of each sequence."""


class _Origin(NamedTuple):
    """What the numbers of a run are of."""

    pair: str | None
    subject: str
    context: str


class _Repetition(NamedTuple):
    """The successful requests of one trace, and what is derived from them; times in s."""

    requests: tuple[RequestTrace, ...]
    ttft_s: float
    latency_s: float
    wall_s: float
    decode_s: float
    n_output: int
    forwards: int | None
    padding: float | None


def reduce(
    traces: Sequence[Trace],
    workload: OfflineWork,
    step: StepCost | None,
    ceilings: Ceilings | None,
    memory: MemoryGauges | Sequence[MemoryGauges] | None,
    energy: EnergyReading | None,
    load_s: float | None,
    *,
    pair: str | None = None,
    subject: str = "",
    context: str = "",
    collectives: float | str = "one device has nobody to communicate with",
) -> RunResult:
    """Every quantity of a run.

    What cannot be derived from what is given is NotMeasurable with its reason.

    `traces` are the valid repetitions in the order they were taken; `memory` the gauges of the one
    rank, or of each; `pair` is shared by the results of an interleaved comparison, whose
    repetitions are then pairs. `collectives` is their share of a run, or why it is not known.

    Raises:
        InvalidRun: no request succeeded, a derived time is not positive, or an output has another
            length than asked.
    """
    origin = _Origin(pair, subject, context)
    repetitions = _repetitions(traces, workload)
    timed = all(trace.token_times for trace in traces)
    speed: dict[str, Any] = _speed(repetitions, origin) if timed else _no_token_times(*_TOKEN_TIMES)
    use: dict[str, Any] = (
        _use(repetitions, step, ceilings, origin) if timed else _no_token_times(*_USE)
    )
    if getattr(workload, "queued", False):
        speed |= {
            name: NotMeasurable(name, batching.QUEUED)
            for name in ("prefill_throughput", "decode_throughput")
        }
        use = {name: NotMeasurable(name, batching.QUEUED) for name in _USE}
    n_requests = sum(len(trace.requests) for trace in traces)
    return RunResult(
        throughput=_estimate("throughput", [r.n_output / r.wall_s for r in repetitions], origin),
        latency=_latencies("latency", [r.latency_s for r in repetitions], origin),
        **speed,
        **use,
        **_of_all(repetitions, origin),
        acceptance_length=_acceptance_length(repetitions, origin),
        goodput=NotMeasurable("goodput", "this workload has no SLO"),
        speed_up=NotMeasurable("speed_up", _ALONE),
        efficiency=NotMeasurable("efficiency", _ALONE),
        collectives=_collectives(collectives, origin),
        memory=_memory(memory, origin),
        energy=_energy(energy, origin),
        load_time=NotMeasurable("load_time", "nothing was loaded")
        if load_s is None
        else exact("load_time", load_s, subject=subject, context=context),
        n_requests=n_requests,
        n_failed=n_requests - sum(len(r.requests) for r in repetitions),
        subject=subject,
        context=context,
    )


# Repetitions


def _repetitions(traces: Sequence[Trace], workload: OfflineWork) -> list[_Repetition]:
    found = [
        _repetition(trace, succeeded)
        for trace in traces
        if (succeeded := tuple(r for r in trace.requests if _succeeded(r)))
    ]
    if not found:
        failures = dict.fromkeys(
            r.failure or "no token came" for trace in traces for r in trace.requests
        )
        raise NoRequestSucceeded(
            f"no request of {len(traces)} repetitions succeeded: {'; '.join(failures) or 'no requests'}."
        )
    for trace in traces:
        _require_lengths(trace, workload)
    return found


def _succeeded(request: RequestTrace) -> bool:
    return bool(request.events) and request.failure is None


def _require_lengths(trace: Trace, workload: OfflineWork) -> None:
    asked = getattr(workload, "output_lengths", None)
    if asked is None:
        _require_length(trace, workload.new_tokens)
    elif trace.token_times and (reason := batching.wrong_length(trace, asked)) is not None:
        raise InvalidRun(f"repetition {trace.repetition}: {reason}.")


def _require_length(trace: Trace, new_tokens: int) -> None:
    lengths = {r.n_output_tokens for r in trace.requests if _succeeded(r)}
    if trace.token_times and not lengths <= {new_tokens}:
        raise InvalidRun(
            f"repetition {trace.repetition}: outputs of {sorted(lengths)} tokens, {new_tokens} were asked for."
        )


def _repetition(trace: Trace, requests: tuple[RequestTrace, ...]) -> _Repetition:
    def positive(what: str, ns: float, *, or_zero: bool = False) -> float:
        if ns < 0 or (ns == 0 and not or_zero):
            raise InvalidRun(
                f"repetition {trace.repetition}: {what} is {ns / _NS} s. The engine's times are not in order."
            )
        return ns / _NS

    for request in requests:
        for before, after in pairwise(request.events):
            positive("a gap between tokens", after.t_ns - before.t_ns, or_zero=True)
    last = max(r.events[-1].t_ns for r in requests)
    return _Repetition(
        requests=requests,
        ttft_s=stats.mean([positive("TTFT", r.events[0].t_ns - r.t_due_ns) for r in requests]),
        latency_s=stats.mean(
            [positive("end-to-end time", r.events[-1].t_ns - r.t_due_ns) for r in requests]
        ),
        wall_s=positive("the time of all requests", last - min(r.t_due_ns for r in requests)),
        decode_s=positive(
            "decode time", last - min(r.events[0].t_ns for r in requests), or_zero=True
        ),
        n_output=sum(r.n_output_tokens for r in requests),
        forwards=trace.forwards,
        padding=batching.padding_share(trace, requests),
    )


# Speed


def _speed(repetitions: Sequence[_Repetition], origin: _Origin) -> dict[str, Quantity | Times]:
    prompts = [sum(r.n_prompt_tokens for r in each.requests) for each in repetitions]
    found: dict[str, Quantity | Times] = {
        "prefill_throughput": _estimate(
            "prefill_throughput",
            [n / r.ttft_s for n, r in zip(prompts, repetitions, strict=True)],
            origin,
        ),
        "ttft": _latencies("ttft", [r.ttft_s for r in repetitions], origin),
    }
    if not all(_decodes(r) for r in repetitions):
        reason = "one output message: there is no time after the first token"
        return found | {
            name: NotMeasurable(name, reason) for name in ("decode_throughput", "tpot", "itl")
        }
    return found | {
        "decode_throughput": _estimate(
            "decode_throughput", [_decode_tok_per_s(r) for r in repetitions], origin
        ),
        "tpot": _latencies("tpot", [_tpot_s(r) for r in repetitions], origin),
        "itl": _latencies("itl", list(_gaps_s(repetitions)), origin),
    }


def _of_all(repetitions: Sequence[_Repetition], origin: _Origin) -> dict[str, Any]:
    """Rates over all requests of a repetition, and the share of padding."""
    totals = [batching.total_tokens(r.requests) for r in repetitions]
    shares = [r.padding for r in repetitions if r.padding is not None]
    return {
        "request_throughput": _estimate(
            "request_throughput", [len(r.requests) / r.wall_s for r in repetitions], origin
        ),
        "total_throughput": NotMeasurable("total_throughput", batching.UNKNOWN_PROMPTS)
        if None in totals
        else _estimate(
            "total_throughput",
            [(n or 0) / r.wall_s for n, r in zip(totals, repetitions, strict=True)],
            origin,
        ),
        "padding": exact(
            "padding", stats.mean(shares), subject=origin.subject, context=origin.context
        )
        if len(shares) == len(repetitions)
        else NotMeasurable("padding", batching.UNKNOWN_POSITIONS),
    }


def _decodes(repetition: _Repetition) -> bool:
    return all(len(r.events) > 1 for r in repetition.requests) and repetition.decode_s > 0


def _decode_tok_per_s(repetition: _Repetition) -> float:
    return (repetition.n_output - len(repetition.requests)) / repetition.decode_s


def _tpot_s(repetition: _Repetition) -> float:
    """Mean over the requests of (end-to-end - TTFT) / (output tokens - 1)."""
    return stats.mean(
        [
            (r.events[-1].t_ns - r.events[0].t_ns) / (r.n_output_tokens - 1) / _NS
            for r in repetition.requests
        ]
    )


def _gaps_s(repetitions: Iterable[_Repetition]) -> Iterable[float]:
    """Pooled ITL. Requests of a batch that step together have one schedule, which counts once.

    Tokens that came with the first message have no gap before them: their time is in the TTFT.
    """
    for repetition in repetitions:
        for events in dict.fromkeys(r.events for r in repetition.requests):
            for before, after in pairwise(events):
                yield from [(after.t_ns - before.t_ns) / after.n_tokens / _NS] * after.n_tokens


def _acceptance_length(repetitions: Sequence[_Repetition], origin: _Origin) -> Quantity:
    counted = [(r.n_output / len(r.requests), r.forwards) for r in repetitions]
    lengths = [n / forwards for n, forwards in counted if forwards]
    if len(lengths) < len(repetitions):
        return NotMeasurable(
            "acceptance_length",
            "nothing proposes tokens here: each forward pass gives one token a sequence",
        )
    return _estimate("acceptance_length", lengths, origin)


def _no_token_times(*names: str) -> dict[str, Quantity]:
    return {
        name: NotMeasurable(name, "the times of tokens were not seen, only the end of each request")
        for name in names
    }


# Use of the device


def _use(
    repetitions: Sequence[_Repetition],
    step: StepCost | None,
    ceilings: Ceilings | None,
    origin: _Origin,
) -> dict[str, Quantity]:
    if step is None or ceilings is None:
        reason = (
            "this engine does not tell what a step moves"
            if step is None
            else "the ceilings of this device were not measured"
        )
        return {name: NotMeasurable(name, reason) for name in _USE}
    decodes = all(map(_decodes, repetitions))
    rate = ceilings.matmul_flop_per_s.get(step.compute_dtype)
    share: dict[str, Callable[[_Repetition], float]] = {}
    if decodes:
        share["mbu"] = lambda r: _step_bytes(r, step) / _step_s(r) / ceilings.copy_bytes_per_s
    if rate:
        share["prefill_mfu"] = lambda r: _prompt_flops(r, step) / r.ttft_s / rate
        share["mfu"] = (
            (lambda r: _step_flops(r, step) / _tpot_s(r) / rate)
            if decodes
            else share["prefill_mfu"]
        )
    reasons = {"mbu": "there is no decode step"} | dict.fromkeys(
        _USE[1:],
        f"the matmul rate of {step.compute_dtype} was not measured",
    )
    return {
        name: _estimate(name, [share[name](r) for r in repetitions], origin)
        if name in share
        else NotMeasurable(name, reasons[name])
        for name in _USE
    }


def _positions(request: RequestTrace) -> float:
    """Positions that a decode step attends to, on average: step i of n - 1 sees the prompt and i generated tokens."""
    return request.n_prompt_tokens + request.n_output_tokens / 2


def _step_s(repetition: _Repetition) -> float:
    """Time of one forward pass of the measured model: TPOT, but where a pass checks several tokens that were proposed."""
    if repetition.forwards is None:
        return _tpot_s(repetition)
    return repetition.decode_s / max(1, repetition.forwards - 1)


def _step_bytes(repetition: _Repetition, step: StepCost) -> float:
    cache = step.kv_bytes_per_token * sum(map(_positions, repetition.requests))
    return step.weight_bytes_read + step.assistant_bytes_read + cache


def _step_flops(repetition: _Repetition, step: StepCost) -> float:
    return sum(
        step.flops_per_token + step.attention_flops_per_token_per_position * _positions(r)
        for r in repetition.requests
    )


def _prompt_flops(repetition: _Repetition, step: StepCost) -> float:
    """Token i of a prompt attends to i positions (causal)."""
    lengths = [r.n_prompt_tokens for r in repetition.requests]
    return sum(
        n * step.flops_per_token + step.attention_flops_per_token_per_position * n * (n + 1) / 2
        for n in lengths
    )


# What is read once


def _memory(memory: MemoryGauges | Sequence[MemoryGauges] | None, origin: _Origin) -> Memory:
    ranks = [memory] if isinstance(memory, MemoryGauges) else list(memory or ())
    return Memory.of(ranks, subject=origin.subject, context=origin.context)


def _collectives(share: float | str, origin: _Origin) -> Quantity:
    if isinstance(share, str):
        return NotMeasurable("collectives", share)
    return exact("collectives", share, subject=origin.subject, context=origin.context)


def _energy(reading: EnergyReading | None, origin: _Origin) -> Energy:
    def missing(reason: str) -> Energy:
        return Energy(
            per_token=NotMeasurable("energy.per_token", reason),
            source=reading.source if reading else "",
        )

    if reading is None or reading.joules is None:
        return missing((reading.reason if reading else "") or "no energy was read")
    if reading.seconds < MIN_ENERGY_S:
        return missing(
            f"the counter was read over {reading.seconds:.1f} s, {MIN_ENERGY_S:g} s are needed"
        )
    if reading.n_output_tokens < 1:
        return missing("no output token came while energy was read")
    if reading.joules <= 0:
        raise InvalidRun(
            f"the energy counter ({reading.source}) went by {reading.joules} J over {reading.seconds:.1f} s."
        )
    context = (
        f"{origin.context}, energy by {reading.source}"
        if origin.context and reading.source
        else origin.context
    )
    value = exact(
        "energy.per_token",
        reading.joules / reading.n_output_tokens,
        subject=origin.subject,
        context=context,
    )
    return Energy(per_token=value, source=reading.source)


def _estimate(name: str, samples: Sequence[float], origin: _Origin) -> Estimate:
    row = TABLE[name]
    return Estimate.of_samples(
        name,
        tuple(samples),
        row.unit,
        direction=row.direction,
        pair=origin.pair,
        subject=origin.subject,
        context=origin.context,
    )


def _latencies(name: str, samples: Sequence[float], origin: _Origin) -> Latencies:
    return Latencies(
        name, tuple(samples), pair=origin.pair, subject=origin.subject, context=origin.context
    )
