"""guidellm's report, a JSON file of its `benchmarks`, each of one rate or number of lines.

Of its definitions: `time_per_output_token` has the first token in it, so that what we call TPOT is
its `inter_token_latency`, a mean over a request.
"""

from __future__ import annotations

from collections.abc import Iterator

from pytest_llmperf.history.foreign.fields import Fields, moment, percentiles
from pytest_llmperf.history.foreign.results import MS, Result, Value, distribution

TOOL = "guidellm"
KNOWN = (1, 2)
"""Versions of the report (`metadata.version`) that are read."""

_TIMES = {
    "time_to_first_token_ms": ("ttft", MS),
    "inter_token_latency_ms": ("tpot", MS),
    "request_latency": ("latency", 1.0),
}
_RATES = {
    "output_tokens_per_second": "throughput",
    "tokens_per_second": "total_throughput",
    "requests_per_second": "request_throughput",
}
_WORK = ("type_", "streams", "rate", "max_concurrency")
_PERCENTILES = {part: part for part in ("p50", "p90", "p95", "p99")}


def recognized(fields: Fields) -> bool:
    """Whether it is a report of guidellm."""
    metadata = fields.maybe("metadata") if "benchmarks" in fields else None
    return metadata is not None and "guidellm_version" in metadata


def read(fields: Fields, _created: str) -> Iterator[Result]:
    """Read every benchmark of a report. Raises UsageError."""
    metadata = fields.at("metadata")
    version = metadata.number("version")
    if version not in KNOWN:
        raise metadata.newer("version", round(version), f"version {KNOWN[0]} or {KNOWN[-1]}")
    for benchmark in fields.rows("benchmarks"):
        yield _result(benchmark, metadata.text("guidellm_version"))


def _result(benchmark: Fields, version: str) -> Result:
    metrics, config = benchmark.at("metrics"), benchmark.at("config")
    totals = metrics.at("request_totals")
    n = round(totals.number("successful"))
    backend, strategy = config.maybe("backend"), config.at("strategy")
    plain = strategy.plain
    return Result(
        tool=TOOL,
        name=strategy.text("type_"),
        model="unknown" if backend is None else backend.text("model", "unknown"),
        created=moment(benchmark.number("start_time")),
        work={
            name: plain[name]
            for name in ("type_", "streams", "rate", "max_concurrency")
            if name in plain
        },
        values=_values(metrics, n),
        speed="latency.p50" if plain.get("rate") else "throughput",
        facts={"version_guidellm": version},
        extra={
            "duration_s": benchmark.optional("duration"),
            "failed": round(totals.number("total")) - n,
        },
    )


def _values(metrics: Fields, n: int) -> list[Value]:
    values = [
        Value(name=ours, value=_successful(metrics, theirs).number("mean"), field=theirs, n=n)
        for theirs, ours in _RATES.items()
    ]
    for theirs, (ours, scale) in _TIMES.items():
        if metrics.maybe(theirs) is not None:
            values += distribution(ours, _parts(metrics, theirs, scale), theirs, n)
    return values


def _successful(metrics: Fields, name: str) -> Fields:
    return metrics.at(name).at("successful")


def _parts(metrics: Fields, name: str, scale: float) -> Iterator[tuple[str, float]]:
    stats = _successful(metrics, name)
    yield from percentiles(stats, {"mean": "mean", "max": "max"}, scale)
    yield from percentiles(stats.at("percentiles"), _PERCENTILES, scale)
