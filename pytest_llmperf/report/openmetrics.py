"""OpenMetrics text of the newest run of each series, for Prometheus' textfile collector. Pure.

Without timestamps, which that collector refuses; when a run was made is a metric of its own.
(OpenMetrics 1.0, github.com/prometheus/OpenMetrics)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.samples import Sample

from pytest_llmperf.core.metrics.quantities import STATISTICS
from pytest_llmperf.core.record import MetricValue, Record

_UNITS = {
    "s": "seconds",
    "B": "bytes",
    "bytes": "bytes",
    "J": "joules",
    "tok/s": "tokens_per_second",
    "1": "ratio",
    "x": "ratio",
}
_OUTCOMES = (
    "PASS",
    "RECORDED",
    "FAIL",
    "UNDECIDED",
    "INVALID",
    "ERROR",
    "SKIPPED",
    "XFAIL",
    "XPASS",
    "WAIVED",
    "MARKED",
    "NOT COMPARABLE",
)
_LABELS = {
    "test": "test",
    "label": "label",
    "workload_text": "workload",
    "strategy": "strategy",
    "engine": "engine",
    "model": "model",
    "environment_key": "environment",
}
"""Fields of a record -> the labels that show them."""


def exposition(records: Iterable[Record]) -> str:
    """Return the newest record of each series and environment as OpenMetrics text.

    What could not be measured is left out: it is never 0.
    """
    oldest_first = sorted(records, key=lambda record: record.created)
    newest = {_series(record): record for record in oldest_first}
    families = _Families()
    for record in newest.values():
        families.add(record)
    registry = CollectorRegistry()
    registry.register(families)
    text: bytes = generate_latest(registry)
    return text.decode()


class _Families:
    """Metric families by name: a collector of the client library."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield the families in the order of their names."""
        for name in sorted(self._families):
            yield self._families[name]

    def add(self, record: Record) -> None:
        """Add the metrics of a run, its time and its outcome."""
        labels = _labels(record)
        for metric in record.metrics:
            self._add_metric(metric, labels)
        measured = Metric(
            "llmperf_measured_timestamp", "When the run was made.", "gauge", unit="seconds"
        )
        self._add_sample(measured, labels, datetime.fromisoformat(record.created).timestamp())
        self._add_outcome(record.outcome, labels)

    def _add_metric(self, metric: MetricValue, labels: Mapping[str, str]) -> None:
        """Add a value and the ends of its interval; statistics of one metric share a family."""
        if metric.value is None:
            return
        _, statistic = _split(metric.name)
        labels = {**labels, "formula": _encodable(metric.formula)}
        if statistic:
            labels["statistic"] = statistic
        self._add_sample(_gauge(metric), labels, metric.value)
        for end, value in (("low", metric.low), ("high", metric.high)):
            if value is not None:
                family = _gauge(metric, f"_interval_{end}", f", end of its interval: {end}")
                self._add_sample(family, labels, value)

    def _add_outcome(self, outcome: str, labels: Mapping[str, str]) -> None:
        family = Metric("llmperf_outcome", "Outcome of the test that made the run.", "stateset")
        for state in dict.fromkeys((*_OUTCOMES, outcome)):
            state_labels = {**labels, family.name: _encodable(state)}
            self._add_sample(family, state_labels, float(outcome == state))

    def _add_sample(self, family: Metric, labels: Mapping[str, str], value: float) -> None:
        """Add a sample to the family of that name, which is `family` if there is none yet."""
        samples = self._families.setdefault(family.name, family).samples
        samples.append(Sample(family.name, dict(labels), value))


def _gauge(metric: MetricValue, suffix: str = "", explanation: str = "") -> Metric:
    name, _ = _split(metric.name)
    return Metric(
        f"llmperf_{_identifier(name)}{suffix}",
        _encodable(f"{name} in {metric.unit}{explanation}."),
        "gauge",
        unit=_unit(metric.unit),
    )


def _series(record: Record) -> tuple[str, ...]:
    return tuple(getattr(record, field) for field in (*_LABELS, "workload_key", "model_hash"))


def _labels(record: Record) -> dict[str, str]:
    """Return the labels of a run; an empty one says nothing and is left out.

    `series` keeps runs apart whose other labels are alike: the same work of another content.
    """
    labels = {label: _encodable(str(getattr(record, field))) for field, label in _LABELS.items()}
    series = "\0".join(_series(record)).encode("utf-8", "replace")
    labels["series"] = hashlib.sha256(series).hexdigest()[:16]
    return {label: text for label, text in labels.items() if text}


def _split(name: str) -> tuple[str, str]:
    """Return a metric and its statistic: 'ttft', 'p50'; the statistic is empty for a number."""
    metric, _, statistic = name.rpartition(".")
    return (metric, statistic) if metric and statistic in STATISTICS else (name, "")


def _identifier(name: str) -> str:
    """Return a name with an underscore for each character that a metric's cannot hold."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def _unit(unit: str) -> str:
    """Return a unit as OpenMetrics writes it: a base unit, never prefixed."""
    return _UNITS.get(unit, re.sub(r"\W+", "_", unit, flags=re.ASCII).strip("_"))


def _encodable(text: str) -> str:
    """Return a text without lone surrogates, which UTF-8 lacks."""
    return text.encode("utf-8", "replace").decode()
