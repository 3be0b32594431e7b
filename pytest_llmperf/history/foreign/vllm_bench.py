"""`vllm bench serve`, `latency` and `throughput`: files of --save-result and --output-json.

Sources: vllm/benchmarks/serve.py, latency.py and throughput.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from pytest_llmperf.history.foreign.fields import Fields, percentiles
from pytest_llmperf.history.foreign.results import MS, Result, Value, distribution

TOOL = "vllm-bench"

_TIMES = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2el": "latency"}
"""Their name of a time -> ours. Their TTFT begins when a request is sent, not when it is due."""

_RATES = {
    "output_throughput": "throughput",
    "total_token_throughput": "total_throughput",
    "request_throughput": "request_throughput",
    "request_goodput": "goodput",
}
_WORK = (
    "backend",
    "num_prompts",
    "request_rate",
    "burstiness",
    "max_concurrency",
    "ramp_up_strategy",
)
_SPLIT = ("total_input_tokens", "total_output_tokens")
_OUR_STATISTICS = ("p50", "p90", "p95", "p99", "mean", "max")


def is_serve(fields: Fields) -> bool:
    """Whether it is a file of `vllm bench serve`."""
    return {"request_throughput", "backend", "num_prompts"} <= set(fields.names)


def is_latency(fields: Fields) -> bool:
    """Whether it is a file of `vllm bench latency`."""
    return {"avg_latency", "latencies"} <= set(fields.names)


def is_throughput(fields: Fields) -> bool:
    """Whether it is a file of `vllm bench throughput`."""
    return {"elapsed_time", "requests_per_second", "tokens_per_second"} <= set(fields.names)


def serve(fields: Fields, created: str) -> Result:
    """Read a result of `vllm bench serve`. Raises UsageError."""
    n = round(fields.number("completed"))
    fields.number("output_throughput")
    values = [
        Value(name=ours, value=value, field=theirs, n=n)
        for theirs, ours in _RATES.items()
        if (value := fields.optional(theirs)) is not None
    ]
    for theirs, ours in _TIMES.items():
        values += distribution(ours, _statistics(fields, theirs), f"{theirs}_ms", n)
    plain = fields.plain
    split = {name.removeprefix("total_"): _per_request(fields, name, n) for name in _SPLIT}
    return Result(
        tool=TOOL,
        name="serve",
        model=fields.text("model_id"),
        created=_date(fields, created),
        work={name: plain.get(name) for name in _WORK} | split,
        values=values,
        speed=_speed(plain.get("request_rate"), values),
        samples=_samples(fields),
        extra={
            "failed": round(fields.optional("failed") or 0),
            "duration_s": fields.optional("duration"),
        },
    )


def _speed(rate: object, values: Sequence[Value]) -> str:
    """Return what is compared: at a rate of its own, throughput says nothing."""
    if rate in (None, "inf"):
        return "throughput"
    has_latency = any(value.name == "latency.p50" for value in values)
    return "latency.p50" if has_latency else "ttft.p50"


def _per_request(fields: Fields, name: str, n: int) -> float | None:
    total = fields.optional(name)
    return None if total is None or not n else round(total / n, 1)


def _statistics(fields: Fields, time: str) -> Iterator[tuple[str, float]]:
    names = {"mean": f"mean_{time}_ms", "p50": f"median_{time}_ms"}
    names |= {part: f"{part}_{time}_ms" for part in _OUR_STATISTICS[1:4]}
    return percentiles(fields, names, MS)


def _samples(fields: Fields) -> dict[str, tuple[float, ...]]:
    """Return the TTFT of each request, where the file has details (--save-detailed)."""
    ttfts = tuple(ttft for ttft in fields.numbers("ttfts") if ttft > 0)
    return {"ttft": ttfts} if ttfts else {}


def _date(fields: Fields, default: str) -> str:
    """Return the local time that the file says, without a zone as it has none."""
    text = fields.text("date", "")
    try:
        return datetime.strptime(text, "%Y%m%d-%H%M%S").isoformat()  # noqa: DTZ007 - has none
    except ValueError:
        return default


def latency(fields: Fields, created: str) -> Result:
    """Read a result of `vllm bench latency`: seconds of a whole batch. Raises UsageError."""
    latencies = fields.numbers("latencies")
    stats = fields.maybe("percentiles")
    names = {f"p{q}": str(q) for q in (50, 90, 95, 99)}
    parts = [("mean", fields.number("avg_latency"))]
    parts += list(percentiles(stats, names, 1.0)) if stats is not None else []
    if latencies:
        parts.append(("max", max(latencies)))
    values = distribution("latency", parts, "latency", len(latencies))
    medians = [value.name for value in values if value.name == "latency.p50"]
    return Result(
        tool=TOOL,
        name="latency",
        model=fields.text("model_id", "unknown"),
        created=created,
        work={"iterations": len(latencies)},
        values=values,
        speed=medians[0] if medians else "latency.mean",
        samples={"latency": latencies} if latencies else {},
    )


def throughput(fields: Fields, created: str) -> Result:
    """Read a result of `vllm bench throughput`: prompt and output tokens. Raises UsageError."""
    n = round(fields.number("num_requests"))
    tokens = Value(
        name="total_throughput",
        value=fields.number("tokens_per_second"),
        field="tokens_per_second",
        n=n,
    )
    requests = Value(
        name="request_throughput",
        value=fields.number("requests_per_second"),
        field="requests_per_second",
        n=n,
    )
    return Result(
        tool=TOOL,
        name="throughput",
        model=fields.text("model_id", "unknown"),
        created=created,
        work={"num_requests": n, "total_num_tokens": fields.optional("total_num_tokens")},
        values=[tokens, requests],
        speed="total_throughput",
        extra={"duration_s": fields.number("elapsed_time")},
    )
