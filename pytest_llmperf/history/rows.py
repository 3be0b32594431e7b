"""A record as rows of the tables."""

from __future__ import annotations

import math
from typing import Any

from pytest_llmperf.core import record_json
from pytest_llmperf.core.record import MetricValue, Record
from pytest_llmperf.history.identity import series_key, storable, utc

_COPIED = (
    "id",
    "session_id",
    "test",
    "label",
    "workload_key",
    "workload_text",
    "strategy",
    "engine",
    "model",
    "model_hash",
    "environment_key",
    "outcome",
)


def record_row(record: Record) -> dict[str, Any]:
    """Return the columns of `records`. Raises StoreError if `created` is not an ISO 8601 time."""
    return {
        **{name: storable(getattr(record, name)) for name in _COPIED},
        "created": utc(record.created),
        "series_key": series_key(record),
        "schema_version": record.schema_version,
    }


def metric_rows(record: Record, seq: int) -> list[dict[str, Any]]:
    """Return the rows of `metrics`, one a name."""
    by_name = {metric.name: metric for metric in record.metrics}
    return [_metric_row(metric, seq) for metric in by_name.values()]


def document(record: Record) -> str:
    """Return the column `body` of `documents`."""
    return record_json.encode(record).decode("utf-8")


def _metric_row(metric: MetricValue, seq: int) -> dict[str, Any]:
    return {
        "record_seq": seq,
        "name": storable(metric.name),
        "unit": storable(metric.unit),
        **_numbers(metric),
        "n": metric.n,
        "formula": storable(metric.formula),
    }


def _numbers(metric: MetricValue) -> dict[str, Any]:
    """Return a metric's value and the ends of its interval, as columns hold them."""
    return {name: _number(getattr(metric, name)) for name in ("value", "low", "high")}


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
