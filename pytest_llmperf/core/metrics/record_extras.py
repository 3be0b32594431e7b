"""What a record keeps of a run beside its metrics: the device's ceilings, ITL by position. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pytest_llmperf.core.metrics.request_times import gaps_s
from pytest_llmperf.core.trace import Ceilings, StepCost, Trace

MAX_POSITIONS = 64
"""Stretches that an output is cut into: ITL by position stays small however long the output is."""


def ceilings(measured: Ceilings | None, step: StepCost | None) -> dict[str, Any]:
    """Return the denominators of MBU and MFU at the dtype that the run computed in.

    Empty where the device has none for it.
    """
    if measured is None or step is None:
        return {}
    flop_per_s = measured.matmul_flop_per_s.get(step.compute_dtype)
    if flop_per_s is None:
        return {}
    return {
        "ceilings": {
            "copy_bytes_per_s": measured.copy_bytes_per_s,
            "bytes_per_s": measured.bytes_per_s,
            "flop_per_s": flop_per_s,
            "dtype": step.compute_dtype,
            "device": measured.device,
            "measured_at": measured.measured_at,
            **({"disturbed": measured.disturbed} if measured.disturbed else {}),
        }
    }


def itl_by_position(traces: Sequence[Trace]) -> dict[str, Any]:
    """Return the median gap (s) before each stretch of output tokens, over all repetitions.

    A batch is represented by its first request.

    Empty where no token but the first has a time of its own, or a message bundles several tokens.
    """
    gaps_by_trace = [_gaps_of_first_request_s(trace) for trace in traces]
    n_gaps = min(map(len, gaps_by_trace), default=0)
    if n_gaps == 0:
        return {}
    stretches = _stretches(n_gaps)
    return {
        "itl_by_position": {
            "token": [start + 2 for start, _ in stretches],
            "s": [_median_s(gaps_by_trace, start, end) for start, end in stretches],
        }
    }


def _median_s(gaps_by_trace: Sequence[Sequence[float]], start: int, end: int) -> float:
    """Return the median of a stretch, in four digits."""
    median = statistics.median([gap for gaps in gaps_by_trace for gap in gaps[start:end]])
    return float(f"{median:.4g}")


def _stretches(n_gaps: int) -> list[tuple[int, int]]:
    """Cut the gaps into at most MAX_POSITIONS stretches of nearly equal length."""
    n_stretches = min(n_gaps, MAX_POSITIONS)
    edges = [round(i * n_gaps / n_stretches) for i in range(n_stretches + 1)]
    return list(pairwise(edges))


def _gaps_of_first_request_s(trace: Trace) -> list[float]:
    request = next((request for request in trace.requests if request.failure is None), None)
    if request is None or request.untimed or not trace.token_times:
        return []
    return gaps_s(request.events) if all(event.n_tokens == 1 for event in request.events) else []
