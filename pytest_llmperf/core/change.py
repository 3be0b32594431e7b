"""A metric before and after: the one value that gate, comparisons and pages share. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from pytest_llmperf.core.format import format_percent
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts import stats

COUNTED = "counted"
"""What the verdict on a counted metric rests on: one exact value on each side."""


class Change(Struct, frozen=True, kw_only=True):
    """A metric of a run before and after, and the verdict on it.

    `before` and `after` are in `unit`. `ratio` is after / before, and its 99 % interval reaches
    from `low` to `high`. Each is None where it is not known. `limit` is the share that the metric
    may be worse by. `how` says what the verdict rests on, `reason` why nothing was compared or
    decided. `test_outcome` is that of the test that measured it, which another metric may decide.
    """

    test: str
    label: str
    strategy: str
    workload_text: str
    test_outcome: str
    metric: str
    unit: str
    direction: str
    before: float | None = None
    after: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    outcome: str
    how: str = ""
    n_before: int = 0
    n_after: int = 0
    limit: float
    reason: str = ""


def run_fields(record: Record) -> dict[str, Any]:
    """The fields of a Change that say which run it is of."""
    return {
        "test": record.test,
        "label": record.label,
        "strategy": record.strategy,
        "workload_text": record.workload_text,
        "test_outcome": record.outcome,
    }


def ratio_fields(log_ratio: stats.LogRatio) -> dict[str, Any]:
    """The ratio and the ends of its interval; without ends where one of them is infinite."""
    fields: dict[str, Any] = {"ratio": math.exp(log_ratio.center)}
    if math.isfinite(log_ratio.low) and math.isfinite(log_ratio.high):
        fields |= {"low": math.exp(log_ratio.low), "high": math.exp(log_ratio.high)}
    return fields


def stored_changes(record: Record) -> list[Change]:
    """Read what --llmperf-against found when the record was made: a change of each metric."""
    against = record.extra.get("against")
    metrics = against.get("metrics", {}) if isinstance(against, Mapping) else {}
    return [stored_change(record, name, summary) for name, summary in metrics.items()]


def stored_change(record: Record, metric: str, summary: Mapping[str, Any]) -> Change:
    """Read one metric's summary as a record keeps it (`Track.summary`)."""
    pairs = summary.get("pairs", ())
    before, after = (_median([float(pair[side]) for pair in pairs]) for side in (0, 1))
    reason = str(summary.get("reason", ""))
    counted = bool(pairs) and not reason and summary.get("ratio") is None
    ratio = _exact_ratio(before, after) if counted else _stored_ratio(summary)
    return Change(
        **run_fields(record),
        **ratio,
        metric=metric,
        unit=str(summary.get("unit", "")),
        direction=str(summary.get("direction", "")),
        before=before,
        after=after,
        outcome=str(summary.get("outcome", "")),
        how=COUNTED if counted else _pairs_text(len(pairs), reason, summary.get("processes")),
        n_before=len(pairs),
        n_after=len(pairs),
        limit=float(summary.get("limit", 0.0)),
        reason=reason,
    )


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _exact_ratio(before: float | None, after: float | None) -> dict[str, Any]:
    return {"ratio": after / before if before and after is not None else None}


def _stored_ratio(summary: Mapping[str, Any]) -> dict[str, Any]:
    if not summary.get("ratio"):
        return {}
    center, low, high = map(float, summary["ratio"])
    bounded = low > 0 and math.isfinite(high)
    return {"ratio": center, "low": low, "high": high} if bounded else {"ratio": center}


def _pairs_text(n: int, reason: str, processes: Mapping[str, Any] | None) -> str:
    """Say how many pairs there were, and of how many processes; an old record does not say that."""
    if reason and not n:
        return ""
    pairs = f"{n} pair{'' if n == 1 else 's'}"
    return f"{pairs}, {_processes_text(processes) if processes else 'interleaved'}"


def _processes_text(processes: Mapping[str, Any]) -> str:
    if not processes["fresh"]:
        return "all of one process a side"
    apart = processes["apart"]
    distance = "" if apart is None else f" {format_percent(float(apart), 2)} apart"
    return f"{processes['processes']} processes{distance}"
