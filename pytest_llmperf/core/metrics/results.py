"""What `llm.run` gives to a test: every quantity of a run, each an Estimate or NotMeasurable."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from pytest_llmperf.core.metrics.latencies import Latencies
from pytest_llmperf.core.metrics.quantities import ALIASES, TABLE, Metric, leaves
from pytest_llmperf.core.metrics.serving_summary import ServingSummary
from pytest_llmperf.core.record import MetricValue
from pytest_llmperf.core.trace import MemoryGauges
from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable
from pytest_llmperf.errors import UsageError, did_you_mean

Quantity = Estimate | NotMeasurable
Times = Latencies | NotMeasurable

Missing = Callable[[str, str], object]
_GAUGES = ("weights", "peak", "reserved", "process", "device", "kv_cache")


class Memory(Struct, frozen=True, kw_only=True, eq=False):
    """Bytes, summed over the ranks.

    `ranks` holds each rank's own; `imbalance` is the largest rank over the mean rank.
    """

    weights: Quantity
    peak: Quantity
    reserved: Quantity
    process: Quantity
    device: Quantity
    kv_cache: Quantity
    imbalance: Quantity
    ranks: tuple[MemoryGauges, ...] = ()

    @classmethod
    def of(cls, ranks: Sequence[MemoryGauges], *, subject: str = "", context: str = "") -> Memory:
        """Totals of the ranks' gauges.

        A gauge that one rank could not read is NotMeasurable, never 0.
        """
        if not ranks:
            return cls.unmeasured("no memory was read")
        totals = {name: _total(name, ranks, subject, context) for name in _GAUGES}
        return cls(**totals, imbalance=_imbalance(ranks, subject, context), ranks=tuple(ranks))

    @classmethod
    def unmeasured(cls, reason: str, missing_as: Missing = NotMeasurable) -> Memory:
        """All of it NotMeasurable, or whatever `missing_as` makes of a name and a reason."""
        missing: dict[str, Any] = {
            name: missing_as(f"memory.{name}", reason) for name in (*_GAUGES, "imbalance")
        }
        return cls(**missing)


class Energy(Struct, frozen=True, kw_only=True, eq=False):
    """Joules. `source` says how they were read ("nvml-counter", "rapl", "power-integral")."""

    per_token: Quantity
    source: str = ""


class RunResult(Struct, frozen=True, kw_only=True, eq=False):
    """One run of a workload. Times in s, rates in tok/s, sizes in bytes, shares 0 to 1.

    `n_failed` of `n_requests` requests failed and are in no number. `serving` says how traffic on a
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
    speed_up: Quantity
    efficiency: Quantity
    collectives: Quantity
    mbu: Quantity
    mfu: Quantity
    prefill_mfu: Quantity
    memory: Memory
    energy: Energy
    load_time: Quantity
    serving: ServingSummary | None = None
    n_requests: int = 0
    n_failed: int = 0
    subject: str = ""
    context: str = ""

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
        """Output tokens of successful requests over the time from the first send to the last completion."""
        return self.throughput

    @classmethod
    def unmeasured(cls, reason: str, missing_as: Missing = NotMeasurable) -> RunResult:
        """A run of which nothing was measured: every quantity is NotMeasurable (or `missing_as`) for this reason."""
        missing: dict[str, Any] = {
            name: missing_as(name, reason) for name in cls.__struct_fields__ if name in TABLE
        }
        energy: dict[str, Any] = {"per_token": missing_as("energy.per_token", reason)}
        return cls(**missing, memory=Memory.unmeasured(reason, missing_as), energy=Energy(**energy))

    def metric(self, name: str) -> Quantity:
        """The quantity of that name: 'throughput', 'ttft.p95', 'memory.peak'.

        Raises UsageError for an unknown one.
        """
        known = [leaf for leaf, _ in leaves()]
        canonical = ALIASES.get(name, name)
        if canonical not in known:
            raise UsageError(
                f"metric {name!r} is not known.{did_you_mean(name, known)} Metrics: {', '.join(known)}."
            )
        found: object = self
        for part in canonical.split("."):
            found = getattr(found, part)
        # leaves() names numbers only.
        assert isinstance(found, Estimate | NotMeasurable)  # noqa: S101
        return found

    def metric_values(self) -> tuple[MetricValue, ...]:
        """Every quantity as a record keeps it."""
        return tuple(metric_value(name, row, self.metric(name)) for name, row in leaves())

    def samples(self) -> dict[str, tuple[float, ...]]:
        """The samples behind the numbers.

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


def exact(name: str, value: float, *, subject: str = "", context: str = "") -> Estimate:
    """An exact quantity with unit, direction and tolerance of its row."""
    row = TABLE[name]
    return Estimate.exact(
        name,
        value,
        row.unit,
        direction=row.direction,
        tolerance=row.tolerance,
        subject=subject,
        context=context,
    )


def _total(gauge: str, ranks: Sequence[MemoryGauges], subject: str, context: str) -> Quantity:
    for rank, gauges in enumerate(ranks):
        if getattr(gauges, gauge) is None or gauge in gauges.reasons:
            where = f"rank {rank}: " if len(ranks) > 1 else ""
            return NotMeasurable(
                f"memory.{gauge}",
                where + gauges.reasons.get(gauge, "this engine does not report it"),
            )
    return exact(
        f"memory.{gauge}",
        sum(getattr(gauges, gauge) for gauges in ranks),
        subject=subject,
        context=context,
    )


def _imbalance(ranks: Sequence[MemoryGauges], subject: str, context: str) -> Quantity:
    known = [gauges.peak for gauges in ranks if gauges.peak is not None]
    sizes = known if len(known) == len(ranks) else [gauges.weights for gauges in ranks]
    if sum(sizes) <= 0:
        return NotMeasurable("memory.imbalance", "no rank reports bytes")
    return exact(
        "memory.imbalance", max(sizes) * len(sizes) / sum(sizes), subject=subject, context=context
    )


def metric_value(name: str, row: Metric, quantity: Quantity) -> MetricValue:
    """A quantity as a record keeps it, with the unit, direction and formula of its row."""
    common: dict[str, Any] = {
        "name": name,
        "unit": row.unit,
        "direction": row.direction,
        "formula": row.formula,
    }
    if isinstance(quantity, NotMeasurable):
        return MetricValue(**common, value=None, reason=quantity.reason)
    if quantity.kind == "exact":
        return MetricValue(**common, value=quantity.value, n=quantity.n)
    low, high = (end if math.isfinite(end) else None for end in (quantity.low, quantity.high))
    return MetricValue(
        **common,
        value=quantity.value,
        low=low,
        high=high,
        confidence=quantity.confidence,
        n=quantity.n,
    )
