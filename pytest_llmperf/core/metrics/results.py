"""What `llm.run` gives to a test: every quantity of a run, each an Estimate or NotMeasurable."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.core.metrics.latencies import Latencies
from pytest_llmperf.core.metrics.origin import NO_ORIGIN, Origin, exact
from pytest_llmperf.core.metrics.quantities import ALIASES, TABLE, Metric, leaves
from pytest_llmperf.core.metrics.serving_summary import ServingSummary
from pytest_llmperf.core.misspelt import ManyNumbers, Suggests
from pytest_llmperf.core.record import MetricValue
from pytest_llmperf.core.trace import MemoryGauges
from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable
from pytest_llmperf.errors import UsageError, did_you_mean

Quantity = Estimate | NotMeasurable
Times = Latencies | NotMeasurable

Missing = Callable[[str, str], object]
_GAUGES = (
    "weights",
    "peak",
    "growth",
    "reserved",
    "process",
    "device",
    "kv_cache",
    "kv_tokens",
)
_PHASES = ("process", "weights", "compile", "warm")

NO_SERVER = "only a server has it"
"""Reason of what only servers have: records of other engines leave it out."""


class Memory(Suggests, ManyNumbers, Struct, frozen=True, kw_only=True, eq=False):
    """Bytes, summed over the ranks, and the tokens that a server's KV cache holds.

    `ranks` holds each rank's own; `imbalance` is the largest rank over the mean rank.
    """

    weights: Quantity
    peak: Quantity
    growth: Quantity
    reserved: Quantity
    process: Quantity
    device: Quantity
    kv_cache: Quantity
    kv_tokens: Quantity
    imbalance: Quantity
    ranks: tuple[MemoryGauges, ...] = ()

    @classmethod
    def of(cls, ranks: Sequence[MemoryGauges], origin: Origin = NO_ORIGIN) -> Memory:
        """Return the totals of the ranks' gauges.

        A gauge that one rank could not read is NotMeasurable, never 0.
        """
        if not ranks:
            return cls.unmeasured("no memory was read")
        totals = {name: _total(name, ranks, origin) for name in _GAUGES}
        return cls(**totals, imbalance=_imbalance(ranks, origin), ranks=tuple(ranks))

    @classmethod
    def unmeasured(cls, reason: str, missing_as: Missing = NotMeasurable) -> Memory:
        """Return gauges that are all NotMeasurable, or what `missing_as` makes of each."""
        missing: dict[str, Any] = {
            name: missing_as(f"memory.{name}", reason) for name in (*_GAUGES, "imbalance")
        }
        return cls(**missing)


class Startup(Suggests, ManyNumbers, Struct, frozen=True, kw_only=True, eq=False):
    """Seconds of the phases of a server's start; see `core.trace.Startup`."""

    process: Quantity
    weights: Quantity
    compile: Quantity
    warm: Quantity

    @classmethod
    def unmeasured(cls, reason: str, missing_as: Missing = NotMeasurable) -> Startup:
        """Return phases that are all NotMeasurable, or what `missing_as` makes of each."""
        missing: dict[str, Any] = {name: missing_as(f"startup.{name}", reason) for name in _PHASES}
        return cls(**missing)


class Energy(Suggests, ManyNumbers, Struct, frozen=True, kw_only=True, eq=False):
    """Joules. `source` says how they were read ("nvml-counter", "rapl", "power-integral")."""

    per_token: Quantity
    source: str = ""


class RunResult(Suggests, ManyNumbers, Struct, frozen=True, kw_only=True, eq=False):
    """One run of a workload. Times in s, rates in tok/s, sizes in bytes, shares 0 to 1.

    `n_failed` of `n_requests` requests failed and are in no number. `disturbed`: other programs
    worked beside it. `serving` says how traffic on a
    server went (`Serve`).
    """

    throughput: Quantity
    total_throughput: Quantity
    request_throughput: Quantity
    padding: Quantity
    decode_throughput: Quantity
    prefill_throughput: Quantity
    ttft: Times
    tpot: Times
    itl: Times
    latency: Times
    acceptance_length: Quantity
    goodput: Quantity
    cpu_time_per_token: Quantity
    speed_up: Quantity
    efficiency: Quantity
    collectives: Quantity
    mbu: Quantity
    mfu: Quantity
    prefill_mfu: Quantity
    memory: Memory
    energy: Energy
    load_time: Quantity
    startup: Startup
    preemptions: Quantity
    unpreempted: Quantity
    speculative_acceptance: Quantity
    prefix_hits: Quantity
    serving: ServingSummary | None = None
    n_requests: int = 0
    n_failed: int = 0
    subject: str = ""
    context: str = ""
    disturbed: bool = False

    @property
    def load(self) -> ServingSummary | None:
        """`serving` under its name in 0.1; it goes with 0.3."""
        warnings.warn(
            "run.load is called run.serving since 0.2: loading a model is another thing.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.serving

    @property
    def output_throughput(self) -> Quantity:
        """Output tokens of successful requests, a second from the first send to the last token."""
        return self.throughput

    @classmethod
    def unmeasured(cls, reason: str, missing_as: Missing = NotMeasurable) -> RunResult:
        """Return a run of which nothing was measured.

        Every quantity is NotMeasurable for this reason, or what `missing_as` makes of it.
        """
        missing: dict[str, Any] = {
            name: missing_as(name, reason) for name in cls.__struct_fields__ if name in TABLE
        }
        energy: dict[str, Any] = {"per_token": missing_as("energy.per_token", reason)}
        return cls(
            **missing,
            memory=Memory.unmeasured(reason, missing_as),
            energy=Energy(**energy),
            startup=Startup.unmeasured(reason, missing_as),
        )

    def metric(self, name: str) -> Quantity:
        """Return the quantity of that name: 'throughput', 'ttft.p95', 'memory.peak'.

        Raises UsageError for an unknown one.
        """
        known = [leaf for leaf, _ in leaves()]
        canonical = ALIASES.get(name, name)
        if canonical not in known:
            near = did_you_mean(name, known, otherwise=f"Metrics: {', '.join(known)}.")
            raise UsageError(f"metric {name!r} is not known.{near}")
        quantity: object = self
        for part in canonical.split("."):
            quantity = getattr(quantity, part)
        # leaves() names numbers only.
        assert isinstance(quantity, Estimate | NotMeasurable)  # noqa: S101
        return quantity

    def metric_values(self) -> tuple[MetricValue, ...]:
        """Return every quantity as a record keeps it."""
        return tuple(metric_value(name, row, self.metric(name)) for name, row in leaves())

    def samples(self) -> dict[str, tuple[float, ...]]:
        """Return the samples behind the numbers.

        ITL gaps are left out: a hundred times the volume, and their percentiles are kept.
        """
        quantities = {
            name: getattr(self, name)
            for name in self.__struct_fields__
            if name in TABLE and name != "itl"
        }
        return {
            name: q.samples
            for name, q in quantities.items()
            if isinstance(q, Estimate | Latencies) and q.samples
        }


def _total(gauge: str, ranks: Sequence[MemoryGauges], origin: Origin) -> Quantity:
    name = f"memory.{gauge}"
    for rank, gauges in enumerate(ranks):
        if getattr(gauges, gauge) is None or gauge in gauges.reasons:
            default = NO_SERVER if gauge == "kv_tokens" else "this engine does not report it"
            reason = gauges.reasons.get(gauge, default)
            return NotMeasurable(name, f"rank {rank}: {reason}" if len(ranks) > 1 else reason)
    return exact(name, sum(getattr(gauges, gauge) for gauges in ranks), origin)


def _imbalance(ranks: Sequence[MemoryGauges], origin: Origin) -> Quantity:
    peaks = [gauges.peak for gauges in ranks if gauges.peak is not None]
    sizes = peaks if len(peaks) == len(ranks) else [gauges.weights for gauges in ranks]
    if sum(sizes) <= 0:
        return NotMeasurable("memory.imbalance", "no rank reports bytes")
    return exact("memory.imbalance", max(sizes) * len(sizes) / sum(sizes), origin)


def metric_value(name: str, row: Metric, quantity: Quantity) -> MetricValue:
    """Return a quantity as a record keeps it, with the unit, direction and formula of its row."""
    value = MetricValue(
        name=name, unit=row.unit, direction=row.direction, formula=row.formula, value=None
    )
    if isinstance(quantity, NotMeasurable):
        return replace(value, reason=quantity.reason)
    value = replace(value, value=quantity.value, n=quantity.n)
    if quantity.kind == "exact":
        return value
    return replace(
        value,
        low=_finite(quantity.low),
        high=_finite(quantity.high),
        confidence=quantity.confidence,
    )


def _finite(end: float) -> float | None:
    """Return an end of an interval, None where nothing bounds it."""
    return end if math.isfinite(end) else None
