"""What a device reaches in a copy, a sum and dense products: the denominators of MBU and MFU.

On a CPU the time is that of the calling thread on its core, so that waiting for other programs does
not count. A device that others used meanwhile, or a rate that no device has, is named.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from pytest_llmperf.core.trace import Ceilings, Mark
from pytest_llmperf.instruments.torch_runtime import DeviceRuntime

COPY_BUFFER_BYTES = {"cuda": 2 * 2**30, "cpu": 192 * 2**20}
"""Each of two buffers: 40 times the L2 of an H200.

On a CPU six times a 32 MiB L3 and below a tenth of a second a copy.
"""

COPY_REPEATS = {"cuda": 30, "cpu": 7}
MATMUL_REPEATS = {"cuda": 12, "cpu": 3}
MATMUL_SIZE = {"cuda": 8192, "cpu": 1536}
CPU_MATMUL_LIMIT_S = 0.25
"""A dtype that the CPU emulates is measured on a smaller product, which stays under this time."""

WAITED_SHARE = 0.2
"""Share of the wall time that a copy's thread may spend off its core before it was disturbed.

Others' share of all cores does not show on a machine that hides them.
"""

COPY_BOUNDS = {"cuda": (5e10, 5e13), "cpu": (5e8, 5e12)}
"""Bytes a second, read and written, between which every device of today lies.

A laptop's GPU has 0.2 TB/s, a B200 8; one thread of an old CPU 4 GB/s, two sockets of HBM 2 TB/s.
"""

MATMUL_BOUNDS = {"cuda": (1e11, 5e16), "cpu": (1e7, 1e15)}
"""FLOP a second: a dtype that is emulated on one thread, and above what any device has."""


@dataclass(frozen=True)
class Timed:
    """The median time of a call, and how much of the wall time its thread was on a core."""

    seconds: float
    on_core: float = 1.0


def measure_ceilings(runtime: DeviceRuntime, dtypes: tuple[str, ...]) -> Ceilings:
    """Measure what this device reaches in a plain copy, in a sum and in dense square products.

    It takes about 3 s on a CPU, less on a GPU. `disturbed` says whether others used the device.
    """
    watch = runtime.watch()
    watch.start()
    copy, read = _timed_copy(runtime), _timed_read(runtime)
    rates = {name: matmul_flop_per_s(runtime, getattr(torch, name)) for name in dtypes}
    telemetry = watch.finish()
    buffer_bytes = COPY_BUFFER_BYTES[runtime.device.type]
    copied, summed = 2 * buffer_bytes / copy.seconds, buffer_bytes / read.seconds
    return Ceilings(
        device=runtime.name(),
        copy_bytes_per_s=copied,
        read_bytes_per_s=summed,
        matmul_flop_per_s=rates,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        disturbed=disturbance(telemetry.marks, copy.on_core)
        or implausible(runtime.device.type, max(copied, summed), rates.values()),
    )


def disturbance(marks: Iterable[Mark], on_core: float) -> str:
    """Return what else the device did; empty for nothing. Pure."""
    details = [mark.detail for mark in marks]
    if on_core < 1 - WAITED_SHARE:
        details.append(f"a copy's thread was off its core {1 - on_core:.0%} of the time")
    return "; ".join(details)


def implausible(kind: str, moved: float, rates: Iterable[float]) -> str:
    """Say which rate is out of the bounds of any device; empty for none. Pure.

    `moved` is in bytes a second, `rates` in FLOP a second.
    """
    readings = [("a copy or a sum", "B/s", moved, COPY_BOUNDS[kind])]
    readings += [("a product", "FLOP/s", rate, MATMUL_BOUNDS[kind]) for rate in rates]
    for work, unit, rate, (low, high) in readings:
        if not low <= rate <= high:
            return f"{work} reached {rate:.3g} {unit}; {low:.3g} to {high:.3g} are possible"
    return ""


def copy_bytes_per_s(runtime: DeviceRuntime) -> float:
    """Return the bytes read and written a second by a copy: the median of several.

    The two buffers are far larger than the cache.
    """
    return 2 * COPY_BUFFER_BYTES[runtime.device.type] / _timed_copy(runtime).seconds


def _timed_copy(runtime: DeviceRuntime) -> Timed:
    kind = runtime.device.type
    source = torch.ones(COPY_BUFFER_BYTES[kind], dtype=torch.uint8, device=runtime.device)
    target = torch.zeros_like(source)
    return _timed(runtime, lambda: target.copy_(source), COPY_REPEATS[kind])


def _timed_read(runtime: DeviceRuntime) -> Timed:
    """Time the sum of a buffer of integers of 64 bits: the fastest read of torch's that we know."""
    kind = runtime.device.type
    numbers = COPY_BUFFER_BYTES[kind] // torch.int64.itemsize
    source = torch.ones(numbers, dtype=torch.int64, device=runtime.device)
    return _timed(runtime, source.sum, COPY_REPEATS[kind])


def matmul_flop_per_s(runtime: DeviceRuntime, dtype: torch.dtype) -> float:
    """Return 2 n^3 / time of an n x n product, in the faster of two layouts.

    A linear layer multiplies with a transposed matrix. On a CPU without instructions for the dtype
    that is 13 times as fast as a product of two plain ones (float16, torch 2.13). n is smaller
    where this dtype is slow (emulated on a CPU).
    """
    kind = runtime.device.type
    repeats = MATMUL_REPEATS[kind]
    rates = []
    for transposed in (False, True):
        size = MATMUL_SIZE[kind]
        if kind == "cpu":
            size = _affordable_size(runtime, dtype, transposed=transposed)
        product = _product(runtime, dtype, size, transposed=transposed)
        rates.append(2 * size**3 / _timed(runtime, product, repeats).seconds)
    return max(rates)


def _affordable_size(runtime: DeviceRuntime, dtype: torch.dtype, *, transposed: bool) -> int:
    probe = 256
    product = _product(runtime, dtype, probe, transposed=transposed)
    fits = probe * (CPU_MATMUL_LIMIT_S / _timed(runtime, product, 2).seconds) ** (1 / 3)
    return max(probe, min(MATMUL_SIZE["cpu"], int(fits) // 64 * 64))


def _product(
    runtime: DeviceRuntime, dtype: torch.dtype, size: int, *, transposed: bool
) -> Callable[[], object]:
    left, right = (torch.randn(size, size, device=runtime.device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    factor = right.t() if transposed else right
    return lambda: torch.matmul(left, factor, out=out)


def _timed(runtime: DeviceRuntime, work: Callable[[], object], repeats: int) -> Timed:
    """Time one call, after two warm-up calls; by CUDA events on a GPU."""
    for _ in range(2):
        work()
    if runtime.device.type == "cuda":
        return Timed(statistics.median(_cuda_times_s(runtime, work, repeats)))
    return _on_cpu(work, repeats)


def _on_cpu(work: Callable[[], object], repeats: int) -> Timed:
    """Time by the clock of this thread, which does an equal share of what torch divides."""
    walls, threads = [], []
    for _ in range(repeats):
        wall_s, thread_s = time.perf_counter(), time.thread_time()
        work()
        threads.append(time.thread_time() - thread_s)
        walls.append(time.perf_counter() - wall_s)
    on_core = min(1.0, sum(threads) / sum(walls))
    return Timed(max(statistics.median(threads), 1e-9), on_core)


def _timing_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _cuda_times_s(runtime: DeviceRuntime, work: Callable[[], object], repeats: int) -> list[float]:
    with torch.cuda.device(runtime.device):
        events = [_timing_event() for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            work()
            event.record()
        runtime.synchronise()
    return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]
