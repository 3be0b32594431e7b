"""The device as torch sees it: synchronising, memory, energy, ceilings, facts.

Imported in workers only.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import psutil
import torch

from pytest_llmperf.core.trace import EnergyReading, MemoryGauges
from pytest_llmperf.errors import OutOfMemory
from pytest_llmperf.instruments.cpu_memory import rss_bytes, rss_region
from pytest_llmperf.instruments.cpu_time import ON_A_GPU
from pytest_llmperf.instruments.energy import MINIMUM_REGION_S, EnergyMeter, cpu_meter, gpu_meter
from pytest_llmperf.instruments.nvml import Nvml, Unreadable
from pytest_llmperf.instruments.telemetry import (
    RANKS_ELSEWHERE,
    CpuWatch,
    GpuWatch,
    Watch,
)


@dataclass
class PeakRegion:
    """Peak memory of a region, filled when it ends.

    Bytes; None with a reason in `reasons` where unknown. `growth` is what the peak is above what
    was there before.
    """

    peak: int | None = None
    growth: int | None = None
    reserved: int | None = None
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceRuntime:
    """One torch device of this process.

    `peers` are the process ids of the other ranks of its model on this host; `ranks` are those of
    the model, wherever they are.
    """

    device: torch.device
    peers: tuple[int, ...] = ()
    ranks: int = 1

    def synchronise(self) -> None:
        """Block until everything queued on the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @cached_property
    def nvml(self) -> Nvml | Unreadable:
        """The driver's view of this device; unreadable on a CPU."""
        if self.device.type != "cuda":
            return Unreadable("not a GPU")
        return Nvml.of(str(torch.cuda.get_device_properties(self.device).uuid))

    @contextmanager
    def peak_memory(self) -> Iterator[PeakRegion]:
        """Watch the region's peak: the allocator's on CUDA, the process's own on a CPU."""
        region = PeakRegion()
        if self.device.type == "cuda":
            self.synchronise()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            yield region
            self.synchronise()
            region.peak = torch.cuda.max_memory_allocated(self.device)
            region.growth = region.peak - before
            region.reserved = torch.cuda.max_memory_reserved(self.device)
            return
        with rss_region() as watched:
            yield region
        region.peak, region.growth = watched.peak_bytes, watched.growth_bytes
        region.reasons = {"reserved": "a CPU has no caching allocator"}

    def memory(
        self, weights: int, region: PeakRegion | None = None, kv_cache: int | None = None
    ) -> MemoryGauges:
        """Return all gauges now, with those of a finished `region`."""
        region = region or PeakRegion()
        readings = {"process": self._process_bytes(), "device": self._device_bytes()}
        unread = {n: value.reason for n, value in readings.items() if isinstance(value, Unreadable)}
        return MemoryGauges(
            weights=weights,
            peak=region.peak,
            growth=region.growth,
            reserved=region.reserved,
            process=_known(readings["process"]),
            device=_known(readings["device"]),
            kv_cache=kv_cache,
            reasons=region.reasons | unread,
        )

    def _process_bytes(self) -> int | Unreadable:
        if self.device.type != "cuda":
            return rss_bytes()
        return self.nvml if isinstance(self.nvml, Unreadable) else self.nvml.process_memory_bytes()

    def _device_bytes(self) -> int | Unreadable:
        if self.device.type != "cuda":
            memory = psutil.virtual_memory()
            return int(memory.total - memory.available)
        if isinstance(self.nvml, Unreadable):
            free, total = torch.cuda.mem_get_info(self.device)
            return int(total - free)
        return self.nvml.device_memory_bytes()

    def watch(self) -> Watch:
        """Return the watch for one region of this device."""
        if isinstance(self.nvml, Unreadable):
            return CpuWatch(self.peers, no_cpu_s=self._why_no_cpu_time())
        return GpuWatch(self.nvml)

    def _why_no_cpu_time(self) -> str:
        """Return why the CPU time of a region is not what its work took; empty where it is."""
        if self.device.type != "cpu":
            return ON_A_GPU
        return RANKS_ELSEWHERE if self.ranks > 1 + len(self.peers) else ""

    def meter(self) -> EnergyMeter | Unreadable:
        """Return the energy counter of this device, or why there is none."""
        return gpu_meter(self.nvml) if self.device.type == "cuda" else cpu_meter()

    def name(self) -> str:
        """Return the device as a reader knows it: the GPU's name, or the CPU's model."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return cpu_model()

    def facts(self) -> dict[str, str | int | float | None]:
        """Return what the environment of a record says about the device."""
        host: dict[str, str | int | float | None] = {
            "device": self.device.type,
            "device_name": self.name(),
            "cpu_model": cpu_model(),
            "cpu_cores": os.cpu_count(),
            "cpu_cores_usable": _usable_cores(),
            "torch_threads": torch.get_num_threads(),
            "memory_total_bytes": psutil.virtual_memory().total,
        }
        host |= _wait_policy()
        return host | self._cuda_facts() if self.device.type == "cuda" else host

    def _cuda_facts(self) -> dict[str, str | int | float | None]:
        properties = torch.cuda.get_device_properties(self.device)
        driver = {} if isinstance(self.nvml, Unreadable) else self.nvml.facts()
        driver_facts = {
            name if name == "driver" else f"device_{name}": value
            for name, value in driver.items()
            if name != "name"
        }
        return {
            "device_total_bytes": properties.total_memory,
            "device_multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "device_count": torch.cuda.device_count(),
            **driver_facts,
        }


def _known(reading: int | Unreadable) -> int | None:
    return None if isinstance(reading, Unreadable) else reading


def _wait_policy() -> dict[str, str]:
    """Return what OpenMP's threads do while they wait, where the user said so."""
    policy = os.environ.get("OMP_WAIT_POLICY", "").strip().lower()
    return {"omp_wait_policy": policy} if policy else {}


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpu_model() -> str:
    """Return the CPU's model name, from /proc/cpuinfo where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


@contextmanager
def out_of_memory_named(doing: str) -> Iterator[None]:
    """Turn torch's out-of-memory errors into ours, with what was being done."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _out_of_memory("device", doing, error) from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
            raise
        raise _out_of_memory("host", doing, error) from error


def _out_of_memory(where: str, doing: str, error: BaseException) -> OutOfMemory:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return OutOfMemory(
        f"out of {where} memory while {doing}: {reason}. Take a smaller batch, prompt or dtype."
    )


def measure_energy(
    runtime: DeviceRuntime,
    seconds: float,
    repeat: Callable[[], int],
    agreed: Callable[[bool], bool] = bool,
) -> EnergyReading:
    """Read the energy counter around calls of `repeat` until `seconds` have passed.

    `repeat` does one repetition and returns its output tokens. `agreed` gives what all ranks of one
    model do, from what this one would: they repeat equally often.
    """
    meter = runtime.meter()
    if isinstance(meter, Unreadable):
        return EnergyReading(joules=None, seconds=0.0, n_output_tokens=0, reason=meter.reason)
    runtime.synchronise()
    before, start_s, n_tokens = meter.read(), time.perf_counter(), 0
    while agreed(time.perf_counter() - start_s < seconds):
        n_tokens += repeat()
    runtime.synchronise()
    joules, elapsed_s = meter.joules_since(before), time.perf_counter() - start_s
    too_short = elapsed_s < MINIMUM_REGION_S
    return EnergyReading(
        joules=None if too_short else joules,
        seconds=elapsed_s,
        n_output_tokens=n_tokens,
        source=meter.source,
        reason=_too_short_text(elapsed_s) if too_short else "",
    )


def _too_short_text(elapsed_s: float) -> str:
    needed = f"an energy counter needs at least {MINIMUM_REGION_S:g} s"
    return f"the region lasted {elapsed_s:.2f} s; {needed}"
