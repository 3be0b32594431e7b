"""Which engine was fastest at the same work, with what its outputs agree.

Pure: from records to sentences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_llmperf.core.format import format_number, format_percent, format_value
from pytest_llmperf.core.record import speed_metric
from pytest_llmperf.core.recorded_ratio import recorded_ratio

if TYPE_CHECKING:
    from pytest_llmperf.core.record import MetricValue, Record


def name_of(record: Record) -> str:
    """Return engine and strategy: 'vllm bf16'."""
    return f"{record.engine} {record.strategy}"


def fastest(records: Sequence[Record]) -> list[str]:
    """Return a sentence for each model and workload that several engines, or ways of batching, did.

    The fastest is named first.
    """
    runs_by_work: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        if _rate(record) is not None:
            work = (record.model, record.workload_key)
            runs_by_work.setdefault(work, {})[name_of(record)] = record
    return [
        _sentence(list(runs.values()))
        for runs in runs_by_work.values()
        if len(set(map(_way, runs.values()))) > 1
    ]


def _way(record: Record) -> tuple[str, str]:
    return record.engine, record.effective.batching if record.effective is not None else ""


def _sentence(runs: Sequence[Record]) -> str:
    """For example: `fastest at decode b1 p32: vllm fp32 14.2 tok/s, 1.31x transformers fp32 …`."""
    first, *others = sorted(runs, key=lambda record: -_value(record))
    behind = "; ".join(
        f"{_ratio(first, other)} {name_of(other)} {_speed(other)}" for other in others
    )
    return f"fastest at {first.workload_text}: {name_of(first)} {_speed(first)}, {behind}"


def _speed(record: Record) -> str:
    unit = "prompt tok/s" if record.workload.get("type") == "prefill" else "tok/s"
    return f"{format_number(_value(record))} {unit}{_agreement(record)}"


def _agreement(record: Record) -> str:
    top1 = top1_agreement(record)
    return "" if top1 is None else f" (top-1 {format_percent(top1)})"


def top1_agreement(record: Record) -> float | None:
    """Return the share of positions where the model agrees with its reference, if it is known."""
    top1 = (record.agreement or {}).get("top1")
    value = top1.get("value") if isinstance(top1, dict) else top1
    return value if isinstance(value, int | float) else None


def _ratio(first: Record, other: Record) -> str:
    """Return the ratio of two runs: of pairs, with its interval, where they were measured in turn.

    Else it is that of the two medians, and says so.
    """
    name = _paired_metric(first, other)
    if name is None:
        return f"{format_value(_value(first) / _value(other), 'x')} (not in turn)"
    ratio = recorded_ratio(first, other, name, paired=True)
    interval = f"[{_exp(ratio.low)}, {_exp(ratio.high)}]"
    return f"{format_value(math.exp(ratio.center), 'x')} {interval}"


def _paired_metric(first: Record, other: Record) -> str | None:
    """Return the metric whose samples are pairs, None where they were not measured in turn."""
    if first.paired_with is None or first.paired_with != other.paired_with:
        return None
    rate = _rate(first)
    name = rate.name if rate is not None else ""
    samples, other_samples = first.samples.get(name, ()), other.samples.get(name, ())
    if not samples or len(samples) != len(other_samples) or min(*samples, *other_samples) <= 0:
        return None
    return name


def _exp(end: float) -> str:
    return format_number(math.exp(end)) if math.isfinite(end) else "?"


def _value(record: Record) -> float:
    rate = _rate(record)
    return rate.value if rate is not None and rate.value is not None else 0.0


def _rate(record: Record) -> MetricValue | None:
    name = speed_metric(record)
    return next((metric for metric in record.metrics if metric.name == name and metric.value), None)
