"""Runs in pytest-benchmark's file format, for `pytest-benchmark compare` and other readers."""

from __future__ import annotations

import platform
import statistics
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from pytest_llmperf.core.record import Record, attempt_of

FORMAT_VERSION = "5.3.1"
"""The version of pytest-benchmark whose format this is.

The installed one is named where there is one.
"""


def document(records: Sequence[Record], written: str) -> dict[str, Any]:
    """Return the file's content. `written` is its time, ISO 8601.

    Records without repetition times are left out, and so is what the gate measured again: a name
    stands for one row.
    """
    timed = [record for record in records if times_s(record) and attempt_of(record) == 1]
    names = Counter(record.test for record in timed)
    facts = timed[-1].environment.facts if timed else {}
    return {
        "machine_info": _machine(facts),
        "commit_info": _commit(facts),
        "benchmarks": [_benchmark(record, _suffix(record, names)) for record in timed],
        "datetime": written,
        "version": _version(),
    }


def times_s(record: Record) -> tuple[float, ...]:
    """Return seconds of each round of a benchmark, or of each request from send to last token."""
    return record.samples.get("time") or record.samples.get("latency") or ()


def stats(data: Sequence[float], iterations: int) -> dict[str, Any]:
    """Return what pytest-benchmark computes of its rounds, by the same definitions."""
    total, mean = sum(data), statistics.mean(data)
    stddev = statistics.stdev(data) if len(data) > 1 else 0
    n_far = sum(not mean - stddev <= seconds <= mean + stddev for seconds in data)
    box = _box(sorted(data))
    return {
        "min": min(data),
        "max": max(data),
        "mean": mean,
        "stddev": stddev,
        "rounds": len(data),
        "median": statistics.median(data),
        **box,
        "stddev_outliers": n_far,
        "outliers": f"{n_far};{box['iqr_outliers']}",
        "ops": len(data) / total if total else 0,
        "total": total,
        "data": list(data),
        "iterations": iterations,
    }


def _box(ordered: Sequence[float]) -> dict[str, float]:
    """Return the quartiles, and what lies more than 1.5 interquartile ranges beside them."""
    q1, q3 = _quartiles(ordered)
    iqr = q3 - q1
    low, high = q1 - 1.5 * iqr, q3 + 1.5 * iqr
    return {
        "iqr": iqr,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": sum(not low <= seconds <= high for seconds in ordered),
        "ld15iqr": ordered[bisect_left(ordered, low)],
        "hd15iqr": ordered[bisect_right(ordered, high) - 1],
    }


def _quartiles(ordered: Sequence[float]) -> tuple[float, float]:
    """Return them by methods 2 and 3 of Wikipedia's list, as pytest-benchmark takes them."""
    n, remainder = divmod(len(ordered), 4)
    if len(ordered) == 1:
        return ordered[0], ordered[0]
    if remainder == 1:
        return _between(ordered, n - 1, 0.75), _between(ordered, 3 * n, 0.25)
    if remainder == 3:  # noqa: PLR2004
        return _between(ordered, n, 0.25), _between(ordered, 3 * n + 1, 0.75)
    half = len(ordered) // 2
    return statistics.median(ordered[:half]), statistics.median(ordered[half:])


def _between(ordered: Sequence[float], i: int, share: float) -> float:
    """Return the point at a share of the way from one value to the next."""
    return (1 - share) * ordered[i] + share * ordered[i + 1]


def _suffix(record: Record, names: Mapping[str, int]) -> str:
    """Return what tells the runs of one test apart, empty for a test of one run."""
    if names[record.test] == 1:
        return ""
    label = f" {record.label}" if record.label else ""
    return f" {record.strategy} {record.workload_text}{label}"


def _benchmark(record: Record, suffix: str) -> dict[str, Any]:
    return {
        "group": None,
        "name": record.test.rpartition("::")[2] + suffix,
        "fullname": record.test + suffix,
        "params": None,
        "param": None,
        "extra_info": _extra_info(record),
        "options": {"disable_gc": False, "timer": "perf_counter", "warmup": True},
        "stats": stats(times_s(record), int(record.extra.get("iterations", 1))),
    }


def _extra_info(record: Record) -> dict[str, Any]:
    return {
        "model": record.model,
        "strategy": record.strategy,
        "workload": record.workload_text,
        "engine": record.engine,
        "outcome": record.outcome,
        "llmperf_record": record.id,
        "metrics": {
            metric.name: metric.value for metric in record.metrics if metric.value is not None
        },
    }


def _commit(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": facts.get("git_commit") or "unversioned",
        "time": None,
        "author_time": None,
        "dirty": bool(facts.get("git_dirty")),
        "project": facts.get("project"),
        "branch": "(unknown)",
    }


def _machine(facts: Mapping[str, Any]) -> dict[str, Any]:
    info: dict[str, Any] = {
        "node": platform.node(),
        "processor": platform.processor(),
        "machine": platform.machine(),
        "python_compiler": platform.python_compiler(),
        "python_implementation": platform.python_implementation(),
        "python_implementation_version": platform.python_version(),
        "python_version": platform.python_version(),
        "python_build": list(platform.python_build()),
        "release": platform.release(),
        "system": platform.system(),
        "cpu": {"brand_raw": facts.get("cpu_model"), "count": facts.get("cpu_cores_limit")},
    }
    if facts.get("device") not in (None, "cpu"):
        info["gpu"] = _gpu(facts)
    return info


def _gpu(facts: Mapping[str, Any]) -> dict[str, Any]:
    gpu = {
        name.removeprefix("device_"): fact
        for name, fact in facts.items()
        if name.startswith("device_")
    }
    return gpu | {name: facts[name] for name in ("driver", "cuda") if name in facts}


def _version() -> str:
    try:
        return metadata.version("pytest-benchmark")
    except metadata.PackageNotFoundError:
        return FORMAT_VERSION
