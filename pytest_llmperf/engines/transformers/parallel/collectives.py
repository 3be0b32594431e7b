"""The share of a run in which a device does nothing but communicate, from torch's profiler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Interval = tuple[float, float]


def share_in_collectives(work: Callable[[], object], device: torch.device) -> float | str:
    """Run `work` under the profiler. 0 to 1 of its wall time, or why that cannot be told."""
    if device.type != "cuda":
        return "gloo works in threads of its own, which torch's profiler does not see"
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        start_ns = time.perf_counter_ns()
        work()
        torch.cuda.synchronize(device)
        wall_us = (time.perf_counter_ns() - start_ns) / 1e3
    kernels = [event for event in seen.events() or [] if event.device_type == DeviceType.CUDA]
    talking = [(e.time_range.start, e.time_range.end) for e in kernels if "nccl" in e.name.lower()]
    if not talking:
        return f"the profiler saw {len(kernels)} kernels of this device and none of NCCL's"
    working = [
        (e.time_range.start, e.time_range.end) for e in kernels if "nccl" not in e.name.lower()
    ]
    return alone(talking, working) / wall_us


def alone(first: Iterable[Interval], second: Iterable[Interval]) -> float:
    """Length of the union of `first` outside of the union of `second`."""
    ours, theirs = list(first), list(second)
    return covered([*ours, *theirs]) - covered(theirs)


def covered(intervals: Iterable[Interval]) -> float:
    """Length of the union of (start, end) intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
