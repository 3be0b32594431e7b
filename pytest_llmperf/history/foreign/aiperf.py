"""aiperf's `profile_export_aiperf.json`: one object a metric, with its unit and statistics.

Its `inter_token_latency` is one value a request, which we call TPOT; the gaps between messages are
its `inter_chunk_latency`, whatever number of tokens a message has.
"""

from __future__ import annotations

from pytest_llmperf.history.foreign.fields import Fields, percentiles
from pytest_llmperf.history.foreign.results import MS, Result, Value, distribution

TOOL = "aiperf"
KNOWN = "1."
"""Versions of the schema that are read; older files have none."""

_TIMES = {
    "time_to_first_token": "ttft",
    "inter_token_latency": "tpot",
    "inter_chunk_latency": "itl",
    "request_latency": "latency",
}
_RATES = {
    "output_token_throughput": "throughput",
    "total_token_throughput": "total_throughput",
    "request_throughput": "request_throughput",
    "goodput": "goodput",
}
_PARTS = {part: part for part in ("p50", "p90", "p95", "p99", "max")} | {"mean": "avg"}
_SCALES = {"ms": MS, "s": 1.0, "sec": 1.0, "us": 1e-6, "ns": 1e-9}
_LOAD = ("type", "concurrency", "rate", "request_rate", "requests", "request_count", "duration")


def recognized(fields: Fields) -> bool:
    """Whether it is a report of aiperf."""
    return "request_throughput" in fields and (
        "input_config" in fields or "aiperf_version" in fields
    )


def read(fields: Fields, created: str) -> Result:
    """Read a report. Raises UsageError."""
    schema = fields.text("schema_version", KNOWN)
    if not schema.startswith(KNOWN):
        raise fields.newer("schema_version", schema, f"{KNOWN}x")
    n = _count(fields)
    values = [
        Value(name=ours, value=rate.number("avg"), field=theirs, n=n)
        for theirs, ours in _RATES.items()
        if (rate := fields.maybe(theirs)) is not None
    ]
    for theirs, ours in _TIMES.items():
        stats = fields.maybe(theirs)
        if stats is not None:
            values += distribution(ours, percentiles(stats, _PARTS, _scale(stats)), theirs, n)
    if not any(value.name == "throughput" for value in values):
        raise fields.missing("output_token_throughput", "an object")
    load = _load(fields)
    return Result(
        tool=TOOL,
        name="profile",
        model=_model(fields),
        created=fields.text("start_time", created),
        work=load,
        values=values,
        speed="latency.p50" if load.get("rate") or load.get("request_rate") else "throughput",
        facts={"version_aiperf": fields.text("aiperf_version", "unknown")},
        extra={"cancelled": fields.plain.get("was_cancelled")},
    )


def _count(fields: Fields) -> int:
    count = fields.maybe("request_count")
    return 0 if count is None else round(count.number("avg"))


def _scale(stats: Fields) -> float:
    """Return what a time's unit is in seconds. Raises UsageError for another unit."""
    unit = stats.text("unit")
    if unit not in _SCALES:
        raise stats.newer("unit", unit, f"one of {', '.join(_SCALES)}")
    return _SCALES[unit]


def _model(fields: Fields) -> str:
    """Return the first model; older versions list the names with the endpoint."""
    config = fields.maybe("input_config")
    models = config.maybe("models") if config is not None else None
    if models is not None:
        rows = models.rows("items")
        return rows[0].text("name") if rows else "unknown"
    return "unknown"


def _load(fields: Fields) -> dict[str, str | int | float | bool | None]:
    """Return what load was asked for: of the measured phase, or of older versions' own object."""
    config = fields.maybe("input_config")
    if config is None:
        return {}
    loads = (
        [row for row in config.rows("phases") if row.text("kind", "") == "profiling"]
        if ("phases" in config)
        else [load for load in (config.maybe("loadgenerator"),) if load is not None]
    )
    plain = loads[0].plain if loads else {}
    return {name: plain[name] for name in _LOAD if plain.get(name) is not None}
