"""A server's Prometheus metrics, sampled around and during a run: which of them we read, and what the samples say. Pure.

Text format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

NAMES: dict[str, tuple[str, ...]] = {
    "kv_use": (
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "llamacpp:kv_cache_usage_ratio",
    ),
    "running": (
        "vllm:num_requests_running",
        "llamacpp:requests_processing",
        "tgi_batch_current_size",
    ),
    "waiting": ("vllm:num_requests_waiting", "llamacpp:requests_deferred", "tgi_queue_size"),
    "preemptions": ("vllm:num_preemptions_total", "vllm:num_preemptions"),
    "prefix_hits": (
        "vllm:prefix_cache_hits_total",
        "vllm:prefix_cache_hits",
        "vllm:gpu_prefix_cache_hits_total",
    ),
    "prefix_queries": (
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_queries",
        "vllm:gpu_prefix_cache_queries_total",
    ),
}
"""What we read -> the names that servers have for it, newest first."""

_LINE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{.*\})?\s+(\S+)", re.MULTILINE)


def read(text: str) -> dict[str, float]:
    """The metrics of NAMES that a page of Prometheus text holds; label sets are added up.

    Unknown is left out.
    """
    totals: dict[str, float] = {}
    for name, value in _LINE.findall(text):
        number = _number(value)
        if number is not None:
            totals[name] = totals.get(name, 0.0) + number
    found = {
        ours: next((totals[name] for name in theirs if name in totals), None)
        for ours, theirs in NAMES.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def summarised(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What the samples of one run say: the largest of the gauges, how much the counters grew, the share of prefix hits."""
    if not samples:
        return {}
    found: dict[str, float] = {}
    for gauge in ("kv_use", "running", "waiting"):
        seen = [sample[gauge] for sample in samples if gauge in sample]
        if seen:
            found[f"{gauge}_max"] = max(seen)
    first, last = samples[0], samples[-1]
    if "preemptions" in first and "preemptions" in last:
        found["preemptions"] = last["preemptions"] - first["preemptions"]
    queries = last.get("prefix_queries", 0.0) - first.get("prefix_queries", 0.0)
    if queries > 0:
        found["prefix_hit_share"] = (
            last.get("prefix_hits", 0.0) - first.get("prefix_hits", 0.0)
        ) / queries
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    # Not a NaN.
    return value if value == value and abs(value) != float("inf") else None  # noqa: PLR0124
