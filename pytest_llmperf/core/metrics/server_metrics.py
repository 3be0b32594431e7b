"""A server's Prometheus metrics: which of them we read, and what they say about a run. Pure.

They are sampled before, during and after it.

Text format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families


class MetricSample(NamedTuple):
    """One line of a page of metrics."""

    name: str
    labels: Mapping[str, str]
    value: float


_PLAIN_NAMES: dict[str, tuple[str, ...]] = {
    "kv_use": (
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "llamacpp:kv_cache_usage_ratio",
        "sglang:token_usage",
    ),
    "running": (
        "vllm:num_requests_running",
        "llamacpp:requests_processing",
        "tgi_batch_current_size",
        "sglang:num_running_reqs",
    ),
    "waiting": (
        "vllm:num_requests_waiting",
        "llamacpp:requests_deferred",
        "tgi_queue_size",
        "sglang:num_queue_reqs",
    ),
    "preemptions": (
        "vllm:num_preemptions_total",
        "vllm:num_preemptions",
        "sglang:num_retracted_requests_total",
    ),
    "drafted": ("vllm:spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_draft_tokens"),
    "accepted": (
        "vllm:spec_decode_num_accepted_tokens_total",
        "vllm:spec_decode_num_accepted_tokens",
    ),
    "prefix_hits": (
        "vllm:prefix_cache_hits_total",
        "vllm:prefix_cache_hits",
        "vllm:gpu_prefix_cache_hits_total",
        "sglang:cached_tokens_total",
    ),
    "prefix_queries": (
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_queries",
        "vllm:gpu_prefix_cache_queries_total",
        "sglang:prompt_tokens_total",
    ),
}


def as_ray_has_it(names: tuple[str, ...]) -> tuple[str, ...]:
    """Add the names under which Ray passes an engine's metrics on."""
    return (*names, *(f"ray_{part}" for name in names for part in (name, name.replace(":", "_"))))


NAMES = {metric: as_ray_has_it(names) for metric, names in _PLAIN_NAMES.items()}
"""What we read -> the names that servers have for it, newest first."""

_COUNTERS = ("preemptions", "drafted", "accepted", "prefix_queries", "prefix_hits")

_SERVERS_NAMES = tuple(name for names in NAMES.values() for name in names)


def read(text: str) -> dict[str, float]:
    """Return the metrics of NAMES that a page of Prometheus text holds; label sets are added up.

    A metric that the page does not have is left out, and so is a line that cannot be read.
    """
    totals: dict[str, float] = {}
    for sample in samples(text, _SERVERS_NAMES):
        totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    metrics = {metric: _newest(totals, names) for metric, names in NAMES.items()}
    return {metric: value for metric, value in metrics.items() if value is not None}


def _newest(totals: Mapping[str, float], names: Sequence[str]) -> float | None:
    return next((totals[name] for name in names if name in totals), None)


def samples(text: str, names: tuple[str, ...]) -> Iterator[MetricSample]:
    """Yield the samples of a page's lines that begin with one of the names.

    There are none of a line that is malformed, or whose value is not finite.
    """
    for line in text.split("\n"):
        # A page has thousands of lines, and is read on the loop that takes tokens as they come.
        if line.lstrip().startswith(names):
            yield from _samples_of_line(line)


def _samples_of_line(line: str) -> Iterator[MetricSample]:
    """Parse one line by itself: of a whole page the parser stops at the first malformed one."""
    try:
        for family in text_string_to_metric_families(line):
            for sample in family.samples:
                if math.isfinite(sample.value):
                    yield MetricSample(sample.name, sample.labels, float(sample.value))
    except (ValueError, OverflowError):
        return


def summarized(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return what the samples of one run say.

    That is the largest of each gauge, how much the counters grew, and the share of prefix hits.
    """
    if not samples:
        return {}
    gauges = {f"{name}_max": _largest(samples, name) for name in ("kv_use", "running", "waiting")}
    counters = {
        **{name: _growth(samples, name) for name in _COUNTERS},
        "prefix_hit_share": _prefix_hit_share(samples),
    }
    return {name: value for name, value in (gauges | counters).items() if value is not None}


def _largest(samples: Sequence[Mapping[str, float]], name: str) -> float | None:
    return max((sample[name] for sample in samples if name in sample), default=None)


def _growth(samples: Sequence[Mapping[str, float]], name: str) -> float | None:
    first, last = samples[0], samples[-1]
    return last[name] - first[name] if name in first and name in last else None


def _prefix_hit_share(samples: Sequence[Mapping[str, float]]) -> float | None:
    first, last = samples[0], samples[-1]
    queries = last.get("prefix_queries", 0.0) - first.get("prefix_queries", 0.0)
    hits = last.get("prefix_hits", 0.0) - first.get("prefix_hits", 0.0)
    return hits / queries if queries > 0 else None
