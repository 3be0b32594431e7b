"""Which engine was fastest at the same work, with what its outputs agree.

Pure: from records to sentences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_llmperf.core.format import format_number, format_percent, format_value
from pytest_llmperf.core.record import speed_metric
from pytest_llmperf.core.verdicts import stats

if TYPE_CHECKING:
    from pytest_llmperf.core.record import MetricValue, Record


def name_of(record: Record) -> str:
    """Engine and strategy: 'vllm bf16'."""
    return f"{record.engine} {record.strategy}"


def fastest(records: Sequence[Record]) -> list[str]:
    """A sentence for each model and workload that several engines, or ways of batching, did.

    The fastest is named first.
    """
    work: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        if _rate(record) is not None:
            work.setdefault((record.model, record.workload_key), {})[name_of(record)] = record
    return [
        _sentence(list(runs.values()))
        for runs in work.values()
        if len(set(map(_way, runs.values()))) > 1
    ]


def _way(record: Record) -> tuple[str, str]:
    return record.engine, record.effective.batching if record.effective is not None else ""


def _sentence(runs: Sequence[Record]) -> str:
    """For example: `fastest at decode b1 p32 n32: vllm fp32 14.2 tok/s (top-1 100 %), 1.31x transformers fp32 …`."""
    first, *others = sorted(runs, key=lambda record: -_value(record))
    behind = "; ".join(
        f"{_ratio(first, other)} {name_of(other)} {_shown(other)}" for other in others
    )
    return f"fastest at {first.workload_text}: {name_of(first)} {_shown(first)}, {behind}"


def _shown(record: Record) -> str:
    unit = "prompt tok/s" if record.workload.get("type") == "prefill" else "tok/s"
    return f"{format_number(_value(record))} {unit}{_agreement(record)}"


def _agreement(record: Record) -> str:
    top1 = (record.agreement or {}).get("top1")
    value = top1.get("value") if isinstance(top1, dict) else top1
    return f" (top-1 {format_percent(value)})" if isinstance(value, int | float) else ""


def _ratio(ours: Record, theirs: Record) -> str:
    """Of pairs where the two were measured in turn, with the interval.

    Else of the two medians, and says so.
    """
    rate = _rate(ours)
    a, b = (record.samples.get(rate.name if rate else "", ()) for record in (ours, theirs))
    paired = ours.paired_with is not None and ours.paired_with == theirs.paired_with
    if not paired or not a or len(a) != len(b) or min(*a, *b) <= 0:
        return f"{format_value(_value(ours) / _value(theirs), 'x')} (not in turn)"
    ratio = stats.log_ratio_interval(a, b, paired=True)
    low, high = (
        format_number(math.exp(end)) if math.isfinite(end) else "?"
        for end in (ratio.low, ratio.high)
    )
    return f"{format_value(math.exp(ratio.center), 'x')} [{low}, {high}]"


def _value(record: Record) -> float:
    rate = _rate(record)
    return rate.value if rate is not None and rate.value is not None else 0.0


def _rate(record: Record) -> MetricValue | None:
    name = speed_metric(record)
    return next((metric for metric in record.metrics if metric.name == name and metric.value), None)
