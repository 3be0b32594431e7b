"""A load on one server, or on two in turn: warm up, run, reduce.

And the search for the highest rate that keeps an SLO.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from pytest_llmperf import engines
from pytest_llmperf.core.loaded import ServingRun
from pytest_llmperf.core.metrics.origin import Origin
from pytest_llmperf.core.metrics.rate_search import Probe, RateSearch, check, next_rate
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.metrics.serving import client_mark, reduce_serving
from pytest_llmperf.core.trace import Mark
from pytest_llmperf.errors import InvalidRun, UsageError
from pytest_llmperf.session.sampling import MIN_VALID, Progress
from pytest_llmperf.wire.commands import RunServing
from pytest_llmperf.workers.pool import OpenModel
from pytest_llmperf.workloads import Serve, describe_serve

WARM_UP = 1_000_000
"""Repetitions from here on are warm-ups: their prompts are no others'."""

WARM_UP_REQUESTS = 4
MAX_TRIES = 3
"""Runs of one load, until one has no mark."""

MAX_PAIRS = 2 * MIN_VALID

Acquire = Callable[[], OpenModel]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """One side of a measurement: what came of it, and every run that was made."""

    model: OpenModel
    workload: Serve
    result: RunResult
    runs: tuple[ServingRun, ...]
    valid: tuple[int, ...]
    marks: tuple[Mark, ...]
    pair: str | None


def require_serves(engine: str) -> None:
    """Raise UsageError for an engine that is no server, before anything is loaded."""
    if engine not in engines.TABLE or not engines.engine(engine).load_capabilities().serves:
        raise UsageError(
            f"Serve() is a load on a server, and engine {engine!r} is none. Servers: engine='server' with options, or "
            f"{', '.join(f'server:{name}' for name in engines.SERVERS)}.",
        )


def generator_program(engine: str, workload: Serve, pythons: Mapping[str, str]) -> str:
    """The command of the workload's generator, empty where it has none.

    Raises UsageError where it is not installed.
    """
    if not workload.generator:
        return ""
    if not engines.engine(engine).load_capabilities().has_address:
        raise UsageError(
            f"Serve(generator={workload.generator!r}): it needs a server's address, and engine {engine!r} has none."
        )
    # For these loads alone.
    from pytest_llmperf.engines.server.generators import find_generator  # noqa: PLC0415

    return str(find_generator(workload.generator, pythons.get(workload.generator)))


def measure_serving(
    acquire: Sequence[Acquire],
    workload: Serve,
    progress: Progress,
    *,
    pair: str | None = None,
    program: str = "",
) -> list[Loaded]:
    """Run a load on one server once, or on two in turn (A B B A …) at least four times each.

    A run with a mark (foreign load, token counts that cannot be right) is made again, as often as
    three times in all. `program` is the workload's generator; warm-ups are our own client's.

    Raises:
        InvalidRun: no run without a mark, no successful request, or the client was the limit.
        WorkerError: a server died. NotInEffect: another model answered.
    """
    for side in acquire:
        progress("warming up", _shown(side(), workload), None)
        _call(side(), _warm_up(workload), WARM_UP)
    taken: list[list[ServingRun]] = [[] for _ in acquire]
    while not _enough(taken):
        n = len(taken[0])
        for at in range(len(acquire)) if n % 2 == 0 else reversed(range(len(acquire))):
            progress(
                "loading the server",
                f"{_shown(acquire[at](), workload)}{f', {n + 1}' if n else ''}",
                workload.duration,
            )
            taken[at].append(_call(acquire[at](), workload, n, program))
    valid = _valid(taken)
    _require(valid, taken)
    return [
        _reduced(side(), workload, runs, valid, pair)
        for side, runs in zip(acquire, taken, strict=True)
    ]


def search(
    run: Callable[[Serve], RunResult],
    workload: Serve,
    *,
    start: float,
    attainment: float,
    within: float,
) -> RateSearch:
    """Try loads until the highest rate that keeps the SLO is known to a factor of 1 + `within`.

    Raises:
        UsageError: the workload has no SLO or is no open loop, or a number cannot be used.

    """
    check(start, attainment, within)
    if workload.slo is None or workload.concurrency is not None:
        raise UsageError(
            "highest_rate(Serve(…)): an open loop (rate=) with an SLO is needed, for example slo=Slo(ttft=0.2)."
        )
    probes: list[Probe] = []
    while (rate := next_rate(probes, first=start, within=within)) is not None:
        probes.append(_probe(run, workload.at(rate=rate), attainment))
    return RateSearch(probes=tuple(probes))


def _probe(run: Callable[[Serve], RunResult], workload: Serve, attainment: float) -> Probe:
    rate = workload.rate or 0.0
    try:
        summary = run(workload).serving
    except InvalidRun as error:
        if "no request of" in str(error):
            return Probe(rate=rate, attainment=0.0, sustained=False, why=str(error))
        raise
    assert summary is not None  # noqa: S101 - a load has one
    reached = summary.attainment or 0.0
    why = (
        f"{reached:.1%} of the requests met it, {attainment:.1%} are asked for"
        if reached < attainment
        else summary.saturated
    )
    return Probe(rate=rate, attainment=reached, sustained=not why, why=why)


def _call(model: OpenModel, workload: Serve, repetition: int, program: str = "") -> ServingRun:
    served = model.call(RunServing(workload=workload, repetition=repetition, program=program)).run
    limited = client_mark(served.trace, workload.ramp_up) if repetition < WARM_UP else None
    return (
        served
        if limited is None
        else msgspec.structs.replace(served, marks=(*served.marks, limited))
    )


def _warm_up(workload: Serve) -> Serve:
    """A few requests of the same shape, on as many lines as the load has."""
    lines = workload.concurrency or WARM_UP_REQUESTS
    return msgspec.structs.replace(
        workload,
        concurrency=lines,
        rate=None,
        traffic=None,
        arrivals="poisson",
        burstiness=1.0,
        duration=None,
        ramp_up=0.0,
        requests=max(WARM_UP_REQUESTS, lines),
        prefix_cache=True,
        generator="",
    )


def _enough(taken: Sequence[Sequence[ServingRun]]) -> bool:
    wanted, most = (1, MAX_TRIES) if len(taken) == 1 else (MIN_VALID, MAX_PAIRS)
    return len(_valid(taken)) >= wanted or len(taken[0]) >= most


def _valid(taken: Sequence[Sequence[ServingRun]]) -> tuple[int, ...]:
    """Runs (pairs, for two sides) without a mark."""
    return tuple(i for i in range(len(taken[0])) if not any(runs[i].marks for runs in taken))


def _require(valid: Sequence[int], taken: Sequence[Sequence[ServingRun]]) -> None:
    if len(valid) >= (1 if len(taken) == 1 else MIN_VALID):
        return
    marks = [mark for runs in taken for served in runs for mark in served.marks]
    said = "; ".join(dict.fromkeys(f"{mark.kind}: {mark.detail}" for mark in marks))
    raise InvalidRun(f"{len(valid)} of {len(taken[0])} runs of the load are valid: {said}.")


def _reduced(
    model: OpenModel,
    workload: Serve,
    runs: Sequence[ServingRun],
    valid: tuple[int, ...],
    pair: str | None,
) -> Loaded:
    used = valid if pair is not None else valid[:1]
    load_s = None if model.plan.option("url") else model.opened.load_s
    origin = Origin(
        subject=_subject(model),
        context=f"{describe_serve(workload)} on {model.opened.device_name}",
        pair=pair,
    )
    result = reduce_serving([runs[i].trace for i in used], workload, load_s, origin)
    marks = tuple(mark for served in runs for mark in served.marks)
    return Loaded(
        model=model,
        workload=workload,
        result=result,
        runs=tuple(runs),
        valid=used,
        marks=marks,
        pair=pair,
    )


def _subject(model: OpenModel) -> str:
    return f"{model.plan.engine} {model.plan.strategy}"


def _shown(model: OpenModel, workload: Serve) -> str:
    return f"{_subject(model)}: {describe_serve(workload)}"
