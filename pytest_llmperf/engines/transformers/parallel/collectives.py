"""The share of a run in which a device does nothing but communicate, from torch's profiler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Interval = tuple[float, float]


def share_in_collectives(work: Callable[[], object], device: torch.device) -> float | str:
    """Run `work` under the profiler.

    Return the share (0 to 1) of its wall time, or why that cannot be told.
    """
    if device.type != "cuda":
        return "gloo works in threads of its own, which torch's profiler does not see"
    kernels, wall_us = _profiled(work, device)
    communication = [_interval(kernel) for kernel in kernels if _is_nccl(kernel)]
    if not communication:
        return f"the profiler saw {len(kernels)} kernels of this device and none of NCCL's"
    computation = [_interval(kernel) for kernel in kernels if not _is_nccl(kernel)]
    return alone(communication, computation) / wall_us


def _profiled(work: Callable[[], object], device: torch.device) -> tuple[list[Any], float]:
    """Run `work`. Return the kernels that ran on the device, and the wall time in microseconds."""
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        start_ns = time.perf_counter_ns()
        work()
        torch.cuda.synchronize(device)
        wall_us = (time.perf_counter_ns() - start_ns) / 1e3
    events = profiler.events() or []
    return [event for event in events if event.device_type == DeviceType.CUDA], wall_us


def _is_nccl(kernel: Any) -> bool:
    return "nccl" in kernel.name.lower()


def _interval(kernel: Any) -> Interval:
    """Return the start and the end of a kernel in microseconds."""
    return kernel.time_range.start, kernel.time_range.end


def alone(first: Iterable[Interval], second: Iterable[Interval]) -> float:
    """Return the length of the union of `first` outside of the union of `second`."""
    others = list(second)
    return covered([*first, *others]) - covered(others)


def covered(intervals: Iterable[Interval]) -> float:
    """Return the length of the union of (start, end) intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
