"""SGLang's `bench_serving`: a line of JSON a run (python/sglang/bench_serving.py)."""

from __future__ import annotations

from pytest_llmperf.history.foreign.fields import Fields, percentiles
from pytest_llmperf.history.foreign.results import MS, Result, Value, distribution

TOOL = "sglang-bench"

_TIMES = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2e_latency": "latency"}
_RATES = {
    "output_throughput": "throughput",
    "total_throughput": "total_throughput",
    "request_throughput": "request_throughput",
}
_WORK = (
    "backend",
    "dataset_name",
    "request_rate",
    "max_concurrency",
    "random_input_len",
    "random_output_len",
    "random_range_ratio",
    "sharegpt_output_len",
)
_PARTS = {"mean": "mean", "p50": "median", "p90": "p90", "p95": "p95", "p99": "p99", "max": "max"}


def recognized(fields: Fields) -> bool:
    """Whether it is a run of SGLang's bench."""
    return {"median_e2e_latency_ms", "total_output_tokens_retokenized"} <= set(fields.names)


def read(fields: Fields, created: str) -> Result:
    """Read one run. Raises UsageError."""
    n = round(fields.number("completed"))
    fields.number("output_throughput")
    values = [
        Value(name=ours, value=value, field=theirs, n=n)
        for theirs, ours in _RATES.items()
        if (value := fields.optional(theirs)) is not None
    ]
    for theirs, ours in _TIMES.items():
        names = {part: f"{word}_{theirs}_ms" for part, word in _PARTS.items()}
        values += distribution(ours, percentiles(fields, names, MS), f"{theirs}_ms", n)
    plain = fields.plain
    server = fields.maybe("server_info")
    return Result(
        tool=TOOL,
        name="serving",
        model=_model(server),
        created=created,
        work={name: plain[name] for name in _WORK if name in plain},
        values=values,
        speed="throughput" if plain.get("request_rate") in (None, "inf") else "latency.p50",
        samples=_samples(fields),
        extra={"duration_s": plain.get("duration"), "accept_length": plain.get("accept_length")},
    )


def _model(server: Fields | None) -> str:
    """Return the model's path, which newer versions keep with what the server says of itself."""
    return "unknown" if server is None else server.text("model_path", "unknown")


def _samples(fields: Fields) -> dict[str, tuple[float, ...]]:
    ttfts = tuple(ttft for ttft in fields.numbers("ttfts") if ttft > 0)
    return {"ttft": ttfts} if ttfts else {}
