"""The search for the highest rate at which a server keeps an SLO, by loads at other rates."""

from __future__ import annotations

from collections.abc import Callable

from pytest_llmperf.core.metrics.rate_search import Probe, RateSearch, check, next_rate
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.errors import NoRequestSucceeded, UsageError
from pytest_llmperf.workloads import Serve


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
            "highest_rate(Serve(…)): an open loop (rate=) with an SLO is needed, "
            "for example slo=Slo(ttft=0.2)."
        )
    probes: list[Probe] = []
    while (rate := next_rate(probes, first=start, within=within)) is not None:
        probes.append(_probe(run, workload.at(rate=rate), attainment))
    return RateSearch(probes=tuple(probes))


def _probe(run: Callable[[Serve], RunResult], workload: Serve, attainment: float) -> Probe:
    rate = workload.rate or 0.0
    try:
        summary = run(workload).serving
    except NoRequestSucceeded as error:
        return Probe(rate=rate, attainment=0.0, sustained=False, why=str(error))
    assert summary is not None  # noqa: S101 - a load has one
    reached = summary.attainment or 0.0
    why = summary.saturated
    if reached < attainment:
        why = f"{reached:.1%} of the requests met it, {attainment:.1%} are asked for"
    return Probe(rate=rate, attainment=reached, sustained=not why, why=why)
