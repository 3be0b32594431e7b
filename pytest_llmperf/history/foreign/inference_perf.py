"""inference-perf's `summary_lifecycle_metrics.json` and its files of single stages.

Source: inference_perf/reportgen/base.py (kubernetes-sigs/inference-perf). Its tokens are those that
its own tokenizer makes of the text, unless it was told to take the server's.
"""

from __future__ import annotations

from pytest_llmperf.history.foreign.fields import Fields, percentiles
from pytest_llmperf.history.foreign.results import Result, Value, distribution

TOOL = "inference-perf"

_TIMES = {
    "time_to_first_token": "ttft",
    "time_per_output_token": "tpot",
    "inter_token_latency": "itl",
    "request_latency": "latency",
}
_RATES = {
    "output_tokens_per_sec": "throughput",
    "total_tokens_per_sec": "total_throughput",
    "requests_per_sec": "request_throughput",
}
_PARTS = {part: part for part in ("mean", "max", "p90", "p95", "p99")} | {"p50": "median"}


def recognized(fields: Fields) -> bool:
    """Whether it is a report of inference-perf."""
    return {"load_summary", "successes"} <= set(fields.names)


def read(fields: Fields, created: str) -> Result:
    """Read one report. Raises UsageError."""
    load, successes = fields.at("load_summary"), fields.at("successes")
    n = round(successes.number("count"))
    rates, times = successes.at("throughput"), successes.at("latency")
    values = [
        Value(name=ours, value=rates.number(theirs), field=theirs, n=n)
        for theirs, ours in _RATES.items()
    ]
    for theirs, ours in _TIMES.items():
        stats = times.maybe(theirs)
        if stats is not None:
            values += distribution(ours, percentiles(stats, _PARTS, 1.0), theirs, n)
    rate = load.optional("requested_rate")
    failures = fields.maybe("failures")
    return Result(
        tool=TOOL,
        name="load",
        model="unknown",
        created=created,
        work={
            "requested_rate": rate,
            "concurrency": load.optional("concurrency"),
            "prompt_len": _mean(successes, "prompt_len"),
            "output_len": _mean(successes, "output_len"),
        },
        values=values,
        speed="latency.p50" if rate else "throughput",
        extra={"failed": round((failures.optional("count") if failures is not None else 0) or 0)},
    )


def _mean(successes: Fields, name: str) -> float | None:
    stats = successes.maybe(name)
    mean = stats.optional("mean") if stats is not None else None
    return None if mean is None else round(mean, 1)
