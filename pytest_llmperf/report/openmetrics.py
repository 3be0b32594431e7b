"""OpenMetrics text: the newest run of each series, for Prometheus' textfile collector or a push gateway. Pure.

Without timestamps, which the textfile collector refuses; when a run was made is a metric of its own.
(OpenMetrics 1.0, github.com/prometheus/OpenMetrics)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from msgspec import Struct

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
_STATISTICS = frozenset({"p50", "p90", "p95", "p99", "mean", "max"})
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
    "NOT COMPARABLE",
)
_LABELS = ("test", "label", "workload_text", "strategy", "engine", "model", "environment_key")


class _Sample(Struct, frozen=True, kw_only=True):
    family: str
    unit: str
    kind: str
    labels: dict[str, str]
    value: float
    help: str


def exposition(records: Iterable[Record]) -> str:
    """The newest record of each series and environment.

    What could not be measured is left out: it is never 0.
    """
    newest = {
        _series(record): record for record in sorted(records, key=lambda record: record.created)
    }
    families: dict[str, list[_Sample]] = {}
    for record in newest.values():
        for sample in _samples(record):
            families.setdefault(sample.family, []).append(sample)
    lines = [line for name in sorted(families) for line in _family(families[name])]
    return "\n".join([*lines, "# EOF\n"])


def _series(record: Record) -> tuple[str, ...]:
    return tuple(getattr(record, name) for name in (*_LABELS, "workload_key", "model_hash"))


def _samples(record: Record) -> list[_Sample]:
    labels = _labels(record)
    found = [sample for metric in record.metrics for sample in _of_metric(metric, labels)]
    when = datetime.fromisoformat(record.created).timestamp()
    made = {
        "family": "llmperf_measured_timestamp_seconds",
        "unit": "seconds",
        "kind": "gauge",
        "help": "When the run was made.",
    }
    states = [
        _Sample(
            family="llmperf_outcome",
            unit="",
            kind="stateset",
            labels={**labels, "llmperf_outcome": name},
            value=float(record.outcome == name),
            help="Outcome of the test that made the run.",
        )
        for name in dict.fromkeys((*_OUTCOMES, record.outcome))
    ]
    return [*found, _Sample(labels=labels, value=when, **made), *states]


def _labels(record: Record) -> dict[str, str]:
    """`series` keeps runs apart whose other labels are alike: the same work of another content."""
    named = {
        name.removesuffix("_text").removesuffix("_key"): str(getattr(record, name))
        for name in _LABELS
    }
    series = hashlib.sha256("\0".join(_series(record)).encode("utf-8", "replace")).hexdigest()[:16]
    return {**{name: text for name, text in named.items() if text}, "series": series}


def _of_metric(metric: MetricValue, labels: Mapping[str, str]) -> list[_Sample]:
    if metric.value is None:
        return []
    name, _, statistic = metric.name.rpartition(".")
    split = bool(name) and statistic in _STATISTICS
    base = re.sub(r"\W", "_", name if split else metric.name, flags=re.ASCII)
    unit = _UNITS.get(metric.unit, re.sub(r"\W+", "_", metric.unit, flags=re.ASCII).strip("_"))
    shared = {**labels, "formula": metric.formula, **({"statistic": statistic} if split else {})}
    ends = {"": metric.value, "_interval_low": metric.low, "_interval_high": metric.high}
    what = f"{metric.name.partition('.')[0] if split else metric.name} in {metric.unit}"
    return [
        _Sample(
            family=_name(f"llmperf_{base}{part}", unit),
            unit=unit,
            kind="gauge",
            labels=shared,
            value=value,
            help=f"{what}{part.replace('_', ' ').replace('interval', ', end of its interval:')}.",
        )
        for part, value in ends.items()
        if value is not None
    ]


def _name(base: str, unit: str) -> str:
    """A metric ends in its unit, once."""
    return base if not unit or base.endswith(f"_{unit}") else f"{base}_{unit}"


def _family(samples: Sequence[_Sample]) -> list[str]:
    first = samples[0]
    head = [f"# TYPE {first.family} {first.kind}"]
    head += [f"# UNIT {first.family} {first.unit}"] if first.unit else []
    head.append(f"# HELP {first.family} {_escaped(first.help)}")
    return [
        *head,
        *(
            f"{each.family}{{{_written(each.labels)}}} {_number(each.value, each.kind)}"
            for each in samples
        ),
    ]


def _written(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())


def _escaped(text: str) -> str:
    plain = text.encode("utf-8", "replace").decode("utf-8")
    return plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float, kind: str) -> str:
    if kind == "stateset":
        return str(int(value))
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(repr(float(value)), repr(float(value)))
