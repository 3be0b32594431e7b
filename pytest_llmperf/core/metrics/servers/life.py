"""A server's own life as quantities: its start, its cache, preemptions, speculation. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from pytest_llmperf.core.metrics.origin import NO_ORIGIN, Origin, exact
from pytest_llmperf.core.metrics.results import Quantity, Startup
from pytest_llmperf.core.trace import MemoryGauges
from pytest_llmperf.core.trace import Startup as Phases
from pytest_llmperf.core.verdicts.estimate import NotMeasurable

UNSAID = "the server's metrics do not say it"
NO_SPECULATION = "nothing was proposed: the server does not speculate, or does not count it"


class ServerLife(Struct, frozen=True, kw_only=True):
    """What is known of a server beside its traffic: the phases of its start, and its memory."""

    startup: Phases | None = None
    memory: MemoryGauges | None = None


UNKNOWN_LIFE = ServerLife()


def startup(phases: Phases | None, origin: Origin = NO_ORIGIN) -> Startup:
    """Return the phases of a start; NotMeasurable with its reason where one is not known."""
    if phases is None:
        return Startup.unmeasured("the server ran already")
    seconds = {
        "process": phases.process_s,
        "weights": phases.weights_s,
        "compile": phases.compile_s,
        "warm": phases.warm_s,
    }
    return Startup(**{name: _phase(name, s, phases.reason, origin) for name, s in seconds.items()})


def _phase(name: str, seconds: float | None, reason: str, origin: Origin) -> Quantity:
    metric = f"startup.{name}"
    if seconds is None:
        return NotMeasurable(metric, reason or "the server's log does not say it")
    return exact(metric, seconds, origin)


def kv_tokens(memory: MemoryGauges | None, origin: Origin = NO_ORIGIN) -> Quantity:
    """Return the tokens that the KV cache holds."""
    if memory is None or memory.kv_tokens is None:
        return NotMeasurable("memory.kv_tokens", "the server does not say it")
    return exact("memory.kv_tokens", memory.kv_tokens, origin)


def of_traffic(
    said: Sequence[Mapping[str, float]], n_requests: int, origin: Origin = NO_ORIGIN
) -> dict[str, Quantity]:
    """Return what the server's own counters say of all runs together.

    `said` are the summaries of each run's metrics, `n_requests` all requests that were sent.
    """
    counts = {
        name: sum(run[name] for run in said) if said and all(name in run for run in said) else None
        for name in ("preemptions", "drafted", "accepted", "prefix_queries", "prefix_hits")
    }
    return {
        "preemptions": _exact("preemptions", counts["preemptions"], origin),
        "unpreempted": _exact("unpreempted", _unpreempted(counts, n_requests), origin),
        "speculative_acceptance": _share(
            "speculative_acceptance", counts["accepted"], counts["drafted"], NO_SPECULATION, origin
        ),
        "prefix_hits": _share(
            "prefix_hits", counts["prefix_hits"], counts["prefix_queries"], UNSAID, origin
        ),
    }


def _unpreempted(counts: Mapping[str, float | None], n_requests: int) -> float | None:
    preemptions = counts["preemptions"]
    if preemptions is None or not n_requests:
        return None
    return max(0.0, 1 - preemptions / n_requests)


def _exact(name: str, value: float | None, origin: Origin) -> Quantity:
    return NotMeasurable(name, UNSAID) if value is None else exact(name, value, origin)


def _share(
    name: str, part: float | None, whole: float | None, reason: str, origin: Origin
) -> Quantity:
    if part is None or not whole:
        return NotMeasurable(name, reason)
    return exact(name, part / whole, origin)
