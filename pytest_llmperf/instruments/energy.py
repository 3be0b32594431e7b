"""Energy over a region: the GPU's cumulative counter, or RAPL on a CPU that lets us read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pytest_llmperf.instruments.nvml import Nvml, Unreadable

MINIMUM_REGION_S = 3.0
"""Counters tick every 20 to 100 ms; below 3 s that alone is more than 1 %."""

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter(Protocol):
    """A cumulative counter. `joules_since` takes what `read` gave before."""

    @property
    def source(self) -> str:
        """What kind of counter it is."""

    def read(self) -> object:
        """Read the counter."""

    def joules_since(self, before: object) -> float:
        """Return the J since the reading `before`."""


@dataclass(frozen=True)
class NvmlMeter:
    """The GPU's total energy counter."""

    nvml: Nvml
    source: str = "nvml-counter"

    def read(self) -> object:
        """Return the J since the driver was loaded, or `Unreadable`."""
        return self.nvml.energy_joules()

    def joules_since(self, before: object) -> float:
        """Return the difference of two readings."""
        after = self.nvml.energy_joules()
        if not isinstance(before, float) or isinstance(after, Unreadable):
            raise TypeError("the energy counter became unreadable during the region")
        return after - before


@dataclass(frozen=True)
class RaplMeter:
    """Sum of the CPU packages' counters, each of which wraps at its own range."""

    packages: tuple[Path, ...]
    source: str = "rapl"

    def read(self) -> object:
        """Return the microjoules of each package."""
        return tuple(_integer(package / "energy_uj") for package in self.packages)

    def joules_since(self, before: object) -> float:
        """Return the difference of two readings, with one wrap allowed."""
        if not isinstance(before, tuple):
            raise TypeError(f"a reading of this meter is needed, not {before!r}")
        total = 0
        for package, start in zip(self.packages, before, strict=True):
            delta = _integer(package / "energy_uj") - start
            total += delta if delta >= 0 else delta + _integer(package / "max_energy_range_uj")
        return total / 1e6


def cpu_meter(root: Path = POWERCAP) -> EnergyMeter | Unreadable:
    """Return RAPL's package counters under `root`, or why they cannot be read."""
    zones = sorted(root.glob("intel-rapl:*"))
    packages = tuple(zone for zone in zones if zone.name.count(":") == 1)
    if not packages:
        return Unreadable(f"no RAPL counters under {root} (virtual machine, or a CPU without them)")
    try:
        meter = RaplMeter(packages)
        meter.read()
    except OSError as error:
        return Unreadable(f"RAPL counters cannot be read: {error}")
    return meter


def gpu_meter(nvml: Nvml | Unreadable) -> EnergyMeter | Unreadable:
    """Return the GPU's counter, or why it cannot be read."""
    if isinstance(nvml, Unreadable):
        return nvml
    reading = nvml.energy_joules()
    return reading if isinstance(reading, Unreadable) else NvmlMeter(nvml)


def _integer(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))
