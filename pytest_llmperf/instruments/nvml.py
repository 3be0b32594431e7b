"""The NVIDIA driver's own figures for one GPU: memory, energy, clocks, throttling, processes.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml

T = TypeVar("T")

# Reasons that make a sample doubtful. The software power cap is left out: it is how a GPU under
# full matmul load works normally, and its effect belongs to the device; it is recorded as
# telemetry.
THROTTLE_REASONS = {
    "hardware slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
    "software thermal slowdown": pynvml.nvmlClocksThrottleReasonSwThermalSlowdown,
    "hardware thermal slowdown": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    "hardware power brake": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
}
POWER_CAP_REASON = pynvml.nvmlClocksThrottleReasonSwPowerCap


@dataclass(frozen=True)
class Unreadable:
    """A figure the driver does not give here, and why."""

    reason: str


@dataclass(frozen=True)
class Nvml:
    """One GPU by UUID. Every figure is a number or `Unreadable`; nothing is ever 0 for unknown."""

    handle: Any

    @classmethod
    def of(cls, uuid: str) -> Nvml | Unreadable:
        """Return the GPU with this UUID ("GPU-…" or bare)."""
        full = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        try:
            pynvml.nvmlInit()
            return cls(pynvml.nvmlDeviceGetHandleByUUID(full))
        except pynvml.NVMLError as error:
            return Unreadable(f"NVML: {error}")

    @classmethod
    def at(cls, index: int) -> Nvml | Unreadable:
        """Return the GPU that the driver lists at this place, whatever CUDA shows of it."""
        try:
            pynvml.nvmlInit()
            return cls(pynvml.nvmlDeviceGetHandleByIndex(index))
        except pynvml.NVMLError as error:
            return Unreadable(f"NVML: {error}")

    @classmethod
    def listed(cls) -> tuple[Nvml, ...] | Unreadable:
        """Return every GPU that the driver lists, whatever CUDA shows of them."""
        try:
            pynvml.nvmlInit()
            indices = range(pynvml.nvmlDeviceGetCount())
            return tuple(cls(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in indices)
        except pynvml.NVMLError as error:
            return Unreadable(f"NVML: {error}")

    def compute_capability(self) -> tuple[int, int] | Unreadable:
        """Return the major and minor compute capability."""
        capability = _read(lambda: pynvml.nvmlDeviceGetCudaComputeCapability(self.handle))
        if isinstance(capability, Unreadable):
            return capability
        major, minor = capability
        return int(major), int(minor)

    def device_memory_bytes(self) -> int | Unreadable:
        """Return the bytes in use on the whole device, by anyone."""
        return _read(lambda: int(pynvml.nvmlDeviceGetMemoryInfo(self.handle).used))

    def process_memory_bytes(self) -> int | Unreadable:
        """Return the bytes that the driver counts for this process.

        They are unreadable when the container's pid is not the driver's.
        """
        processes = _read(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle))
        if isinstance(processes, Unreadable):
            return processes
        by_pid = {process.pid: process.usedGpuMemory for process in processes}
        if os.getpid() not in by_pid:
            return Unreadable(
                f"pid {os.getpid()} is not among the {len(processes)} processes the driver shows "
                "(the pids of a container are its own)"
            )
        used = by_pid[os.getpid()]
        if used is None:
            return Unreadable("the driver hides memory per process here")
        return int(used)

    def energy_joules(self) -> float | Unreadable:
        """Return the cumulative energy counter, in J since the driver was loaded."""
        return _read(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1000.0)

    def clock_event_reasons(self) -> int | Unreadable:
        """Return the bit mask of what limits the clocks now."""
        return _read(lambda: int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle)))

    def violation_ns(self) -> dict[str, int]:
        """Return the time below the wanted clocks since the driver was loaded, by policy.

        It is empty where not supported.
        """
        policies = {
            "power": pynvml.NVML_PERF_POLICY_POWER,
            "thermal": pynvml.NVML_PERF_POLICY_THERMAL,
        }
        read = {name: self._violation_ns(policy) for name, policy in policies.items()}
        return {name: value for name, value in read.items() if not isinstance(value, Unreadable)}

    def _violation_ns(self, policy: int) -> int | Unreadable:
        return _read(
            lambda: int(pynvml.nvmlDeviceGetViolationStatus(self.handle, policy).violationTime)
        )

    def gauges(self) -> dict[str, float]:
        """Return clocks (MHz), temperature (deg C) and power (W) now; those that can be read."""
        read = {
            "sm_clock_mhz": _read(
                lambda: pynvml.nvmlDeviceGetClockInfo(self.handle, pynvml.NVML_CLOCK_SM)
            ),
            "memory_clock_mhz": _read(
                lambda: pynvml.nvmlDeviceGetClockInfo(self.handle, pynvml.NVML_CLOCK_MEM)
            ),
            "temperature_c": _read(
                lambda: pynvml.nvmlDeviceGetTemperature(self.handle, pynvml.NVML_TEMPERATURE_GPU)
            ),
            "power_w": _read(lambda: pynvml.nvmlDeviceGetPowerUsage(self.handle) / 1000.0),
        }
        return {
            name: float(value) for name, value in read.items() if not isinstance(value, Unreadable)
        }

    def other_processes(self) -> tuple[int, ...] | Unreadable:
        """Return the pids of other compute processes.

        They are unreadable where several are shown and none of them is ours (containers).
        """
        processes = _read(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle))
        if isinstance(processes, Unreadable):
            return processes
        pids = [process.pid for process in processes]
        if os.getpid() in pids:
            return tuple(pid for pid in pids if pid != os.getpid())
        if len(pids) > 1:
            return Unreadable(
                f"{len(pids)} processes use the device, and which of them is ours cannot be told "
                "in this container"
            )
        return ()

    def busy_since(self, t_us: int) -> dict[int, int] | Unreadable:
        """Return the SM use in percent by pid: the largest sample since `t_us`.

        `t_us` is in microseconds of the Unix epoch.
        """
        samples = _read(lambda: pynvml.nvmlDeviceGetProcessUtilization(self.handle, t_us))
        if isinstance(samples, Unreadable):
            return samples
        busy: dict[int, int] = {}
        for sample in samples:
            busy[sample.pid] = max(busy.get(sample.pid, 0), int(sample.smUtil))
        return busy

    def facts(self) -> dict[str, str | int | float]:
        """Return what identifies the device and its settings, for the environment of a record.

        The UUID is hashed.
        """
        read = {
            "name": _read(lambda: _text(pynvml.nvmlDeviceGetName(self.handle))),
            "uuid_hash": _read(self._uuid_hash),
            "driver": _read(lambda: _text(pynvml.nvmlSystemGetDriverVersion())),
            "power_limit_w": _read(
                lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(self.handle) / 1000.0
            ),
            "max_sm_clock_mhz": self._max_clock_mhz(pynvml.NVML_CLOCK_SM),
            "max_memory_clock_mhz": self._max_clock_mhz(pynvml.NVML_CLOCK_MEM),
        }
        return {name: value for name, value in read.items() if not isinstance(value, Unreadable)}

    def _max_clock_mhz(self, clock: int) -> int | Unreadable:
        return _read(lambda: int(pynvml.nvmlDeviceGetMaxClockInfo(self.handle, clock)))

    def _uuid_hash(self) -> str:
        uuid = _text(pynvml.nvmlDeviceGetUUID(self.handle))
        return hashlib.sha256(uuid.encode()).hexdigest()[:12]


def _read(figure: Callable[[], T]) -> T | Unreadable:
    try:
        return figure()
    except pynvml.NVMLError as error:
        return Unreadable(f"NVML: {error}")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def print_capabilities() -> None:
    """Write the compute capability of each GPU that the driver lists, as JSON: [[9, 0], …]."""
    gpus = Nvml.listed()
    capabilities = [] if isinstance(gpus, Unreadable) else [g.compute_capability() for g in gpus]
    readable = [value for value in capabilities if not isinstance(value, Unreadable)]
    print(json.dumps(readable))  # noqa: T201 - read by `instruments.unopened`
