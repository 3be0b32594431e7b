"""Runs in pytest-benchmark's file format, for `pytest-benchmark compare` and the tools that read it. Formatting only."""

from __future__ import annotations

import platform
import statistics
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from pytest_llmperf.core.record import Record

FORMAT_VERSION = "5.3.1"
"""The version of pytest-benchmark whose format this is.

The installed one is named where there is one.
"""


def document(records: Sequence[Record], written: str) -> dict[str, Any]:
    """The file's content. `written` is its time, ISO 8601.

    Records without repetition times are left out.
    """
    timed = [record for record in records if times_s(record)]
    names = Counter(record.test for record in timed)
    facts = timed[-1].environment.facts if timed else {}
    return {
        "machine_info": _machine(facts),
        "commit_info": {
            "id": facts.get("git_commit") or "unversioned",
            "time": None,
            "author_time": None,
            "dirty": bool(facts.get("git_dirty")),
            "project": facts.get("project"),
            "branch": "(unknown)",
        },
        "benchmarks": [_benchmark(record, alone=names[record.test] == 1) for record in timed],
        "datetime": written,
        "version": _version(),
    }


def times_s(record: Record) -> tuple[float, ...]:
    """Seconds of each round of a benchmark, or of each request from send to last token."""
    return record.samples.get("time") or record.samples.get("latency") or ()


def stats(data: Sequence[float], iterations: int) -> dict[str, Any]:
    """What pytest-benchmark computes of its rounds, by the same definitions."""
    ordered, total, mean = sorted(data), sum(data), statistics.mean(data)
    stddev = statistics.stdev(data) if len(data) > 1 else 0
    q1, q3 = _quartiles(ordered)
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    n_far = sum(not mean - stddev <= x <= mean + stddev for x in data)
    n_out = sum(not low <= x <= high for x in data)
    return {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": mean,
        "stddev": stddev,
        "rounds": len(data),
        "median": statistics.median(data),
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": n_out,
        "stddev_outliers": n_far,
        "outliers": f"{n_far};{n_out}",
        "ld15iqr": ordered[bisect_left(ordered, low)],
        "hd15iqr": ordered[bisect_right(ordered, high) - 1],
        "ops": len(data) / total if total else 0,
        "total": total,
        "data": list(data),
        "iterations": iterations,
    }


def _quartiles(ordered: Sequence[float]) -> tuple[float, float]:
    """Methods 2 and 3 of Wikipedia's list, as pytest-benchmark takes them."""
    n, odd = divmod(len(ordered), 4)
    if len(ordered) == 1:
        return ordered[0], ordered[0]
    if len(ordered) % 2 == 0:
        half = len(ordered) // 2
        return statistics.median(ordered[:half]), statistics.median(ordered[half:])
    if odd == 1:
        return 0.25 * ordered[n - 1] + 0.75 * ordered[n], 0.75 * ordered[3 * n] + 0.25 * ordered[
            3 * n + 1
        ]
    return 0.75 * ordered[n] + 0.25 * ordered[n + 1], 0.25 * ordered[3 * n + 1] + 0.75 * ordered[
        3 * n + 2
    ]


def _benchmark(record: Record, *, alone: bool) -> dict[str, Any]:
    suffix = (
        ""
        if alone
        else f" {record.strategy} {record.workload_text}{f' {record.label}' if record.label else ''}"
    )
    numbers = {m.name: m.value for m in record.metrics if m.value is not None}
    measured = {
        "model": record.model,
        "strategy": record.strategy,
        "workload": record.workload_text,
        "engine": record.engine,
    }
    return {
        "group": None,
        "name": record.test.rpartition("::")[2] + suffix,
        "fullname": record.test + suffix,
        "params": None,
        "param": None,
        "extra_info": {
            **measured,
            "outcome": record.outcome,
            "llmperf_record": record.id,
            "metrics": numbers,
        },
        "options": {"disable_gc": False, "timer": "perf_counter", "warmup": True},
        "stats": stats(times_s(record), int(record.extra.get("iterations", 1))),
    }


def _machine(facts: dict[str, Any]) -> dict[str, Any]:
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
        info["gpu"] = {
            name.removeprefix("device_"): value
            for name, value in facts.items()
            if name.startswith("device_")
        }
        info["gpu"] |= {name: facts[name] for name in ("driver", "cuda") if name in facts}
    return info


def _version() -> str:
    try:
        return metadata.version("pytest-benchmark")
    except metadata.PackageNotFoundError:
        return FORMAT_VERSION
