"""What a record keeps of a run beside its metrics, for the reports: the device's ceilings, and ITL along the output. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pytest_llmperf.core.trace import Ceilings, StepCost, Trace
from pytest_llmperf.core.verdicts import stats

MAX_POSITIONS = 64
"""Stretches that an output is cut into: ITL by position stays small however long the output is."""

_NS = 1e9


def ceilings(measured: Ceilings | None, step: StepCost | None) -> dict[str, Any]:
    """The denominators of MBU and MFU at the dtype that the run computed in.

    Empty where the device has none for it.
    """
    flop_per_s = measured.matmul_flop_per_s.get(step.compute_dtype) if measured and step else None
    if measured is None or step is None or flop_per_s is None:
        return {}
    kept = {
        "copy_bytes_per_s": measured.copy_bytes_per_s,
        "flop_per_s": flop_per_s,
        "dtype": step.compute_dtype,
    }
    return {"ceilings": {**kept, "device": measured.device, "measured_at": measured.measured_at}}


def itl_by_position(traces: Sequence[Trace]) -> dict[str, Any]:
    """Median gap (s) before each stretch of output tokens, over all repetitions.

    Of a batch, its first request speaks.

    Empty where no token but the first has a time of its own, or a message bundles several tokens.
    """
    gaps = [_gaps_s(trace) for trace in traces]
    n = min(map(len, gaps), default=0)
    if n == 0:
        return {}
    edges = [round(at * n / min(n, MAX_POSITIONS)) for at in range(min(n, MAX_POSITIONS) + 1)]
    stretches = list(pairwise(edges))
    medians = [
        stats.median([gap for row in gaps for gap in row[start:end]]) for start, end in stretches
    ]
    return {
        "itl_by_position": {
            "token": [start + 2 for start, _ in stretches],
            "s": [float(f"{m:.4g}") for m in medians],
        }
    }


def _gaps_s(trace: Trace) -> list[float]:
    events = next((request.events for request in trace.requests if request.failure is None), ())
    if not trace.token_times or any(event.n_tokens != 1 for event in events):
        return []
    return [(after.t_ns - before.t_ns) / _NS for before, after in pairwise(events)]
