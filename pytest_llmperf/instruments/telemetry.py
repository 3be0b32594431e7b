"""What else happened on the machine around a timed run, read before and after it: throttling and foreign load."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from pytest_llmperf.core.trace import Mark
from pytest_llmperf.instruments.nvml import POWER_CAP_REASON, THROTTLE_REASONS, Nvml, Unreadable
from pytest_llmperf.processes import of_this_session

FOREIGN_CPU_SHARE = 0.25
"""Share of the cores a worker may run on that others may use before a sample is marked.

Shared CI machines are noisy; this is not idle noise.
"""

CGROUP_THROTTLED_SHARE = 0.05
"""Share of the region that the container's CPU quota may stop us."""

GPU_THERMAL_SHARE = 0.01
"""Share of the region that the GPU may spend below its clocks for heat."""

FOREIGN_GPU_PERCENT = 5
"""SM use of another process. A neighbour that is loaded but idle does not disturb."""

SHORTEST_JUDGED_S = 0.1
"""/proc/stat counts in ticks of 10 ms: in a shorter region the share is too coarse to judge."""

_CPU_STAT = (Path("/sys/fs/cgroup/cpu.stat"), Path("/sys/fs/cgroup/cpu/cpu.stat"))


@dataclass(frozen=True)
class Seen:
    """Telemetry of one region, and the marks it earns."""

    gauges: dict[str, float]
    marks: tuple[Mark, ...]


class Watch(Protocol):
    """Started before a timed region, finished after it. Does nothing in between."""

    def start(self) -> None:
        """Read what must be known before."""

    def finish(self) -> Seen:
        """Read again and judge."""


class CpuWatch:
    """Others' share of the cores this process may run on (busy and steal time minus our own), and the container's throttling.

    `peers` are ids of the processes that work on the same thing: the other ranks of a model are no foreign load.
    """

    def __init__(self, peers: tuple[int, ...] = ()) -> None:
        mine = set(own_cores())
        self._peers = tuple(
            pid for pid in peers if mine & os.sched_getaffinity(pid)
        )  # on other cores they are not counted as busy
        self._before: CpuReading | None = None

    def start(self) -> None:
        """Read the counters."""
        self._before = read_cpu(self._peers)

    def finish(self) -> Seen:
        """Read them again and judge the difference. Raises RuntimeError when not started."""
        if self._before is None:
            raise RuntimeError("finish() without start()")
        return judge_cpu(self._before, read_cpu(self._peers), cores=len(own_cores()))


@dataclass(frozen=True)
class CpuReading:
    """Cumulative times in s: `busy_s` of the cores we may run on, with steal.

    `own_s` of this process, peers, all children.
    """

    t_s: float
    busy_s: float
    own_s: float
    throttled_s: float | None


def read_cpu(peers: Sequence[int] = ()) -> CpuReading:
    """The counters now. Costs well under 1 ms.

    Raises NoSuchProcess if a peer is gone: the run is lost anyway.
    """
    by_core = psutil.cpu_times(percpu=True)
    own = sum(sum(psutil.Process(pid).cpu_times()[:4]) for pid in (os.getpid(), *peers))
    busy = sum(_busy_s(by_core[core]) for core in own_cores(len(by_core)))
    return CpuReading(time.perf_counter(), busy, own, _cgroup_throttled_s())


def own_cores(n_seen: int | None = None) -> tuple[int, ...]:
    """Numbers of the cores this process may run on.

    All that are seen where some are offline, for then no number is sure.
    """
    n = os.cpu_count() or 1 if n_seen is None else n_seen
    allowed = tuple(sorted(os.sched_getaffinity(0)))
    return allowed if n == os.sysconf("SC_NPROCESSORS_CONF") else tuple(range(n))


def _busy_s(times: Any) -> float:
    idle = times.idle + getattr(times, "iowait", 0.0)
    # user already includes guest time on Linux
    return float(
        sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    )


def judge_cpu(before: CpuReading, after: CpuReading, cores: int) -> Seen:
    """Pure: what two readings say about the region between them."""
    wall = after.t_s - before.t_s
    gauges: dict[str, float] = {}
    marks: list[Mark] = []
    if wall >= SHORTEST_JUDGED_S:
        foreign = max(0.0, (after.busy_s - before.busy_s) - (after.own_s - before.own_s)) / (
            wall * cores
        )
        gauges["foreign_cpu_share"] = foreign
        if foreign > FOREIGN_CPU_SHARE:
            detail = f"other processes used {foreign:.0%} of {cores} cores (limit {FOREIGN_CPU_SHARE:.0%})"
            marks.append(Mark(kind="foreign-load", detail=detail))
    if before.throttled_s is not None and after.throttled_s is not None and wall > 0:
        share = (after.throttled_s - before.throttled_s) / wall
        gauges["cgroup_throttled_share"] = share
        if share > CGROUP_THROTTLED_SHARE:
            marks.append(
                Mark(
                    kind="throttled",
                    detail=f"the container's CPU quota stopped it for {share:.0%} of the run",
                )
            )
    return Seen(gauges, tuple(marks))


class GpuWatch:
    """Clocks, temperature, power, throttling and foreign processes of one GPU.

    The other models of the session wait while this one works. What the driver says of their use is
    of the time before: it averages over up to a second.
    """

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._violations: dict[str, int] = {}
        self._start_ns = 0
        self._start_us = 0

    def start(self) -> None:
        """Read the cumulative counters."""
        self._violations = self._nvml.violation_ns()
        self._start_ns, self._start_us = time.perf_counter_ns(), time.time_ns() // 1000

    def finish(self) -> Seen:
        """Read everything; the instantaneous reasons are those right after the run."""
        wall_ns = max(1, time.perf_counter_ns() - self._start_ns)
        reasons = self._nvml.clock_event_reasons()
        active = 0 if isinstance(reasons, Unreadable) else reasons
        after = self._nvml.violation_ns()
        shares = {
            name: (after[name] - start) / wall_ns
            for name, start in self._violations.items()
            if name in after
        }
        foreign = self._foreign()
        gauges = self._nvml.gauges() | {
            f"{name}_violation_share": share for name, share in shares.items()
        }
        gauges |= {"power_capped": float(bool(active & POWER_CAP_REASON))}
        gauges |= {"foreign_processes": float(len(foreign[0]))} if foreign is not None else {}
        busy = {} if foreign is None else foreign[1]
        return Seen(gauges, (*throttle_marks(active, shares), *foreign_marks(busy)))

    def _foreign(self) -> tuple[tuple[int, ...], dict[int, int]] | None:
        shown = self._nvml.other_processes()
        if isinstance(shown, Unreadable):
            return None
        others = tuple(pid for pid in shown if not of_this_session(pid))
        busy = self._nvml.busy_since(self._start_us) if others else {}
        return others, {} if isinstance(busy, Unreadable) else {
            pid: use for pid, use in busy.items() if pid in others
        }


def throttle_marks(active: int, violation_shares: dict[str, float]) -> tuple[Mark, ...]:
    """Marks for a mask of clock-event reasons and for shares of the region lost to heat. Pure."""
    limiting = [name for name, bit in THROTTLE_REASONS.items() if active & bit]
    marks = [Mark(kind="throttled", detail=f"clock-event reason: {name}") for name in limiting]
    thermal = violation_shares.get("thermal", 0.0)
    if thermal > GPU_THERMAL_SHARE:
        marks.append(
            Mark(kind="throttled", detail=f"below its clocks for heat {thermal:.1%} of the run")
        )
    return tuple(marks)


def foreign_marks(sm_percent_by_pid: dict[int, int]) -> tuple[Mark, ...]:
    """Marks for other processes that were busy on the GPU. Pure."""
    return tuple(
        Mark(kind="foreign-load", detail=f"process {pid} used {use} % of the GPU's multiprocessors")
        for pid, use in sm_percent_by_pid.items()
        if use > FOREIGN_GPU_PERCENT
    )


def _cgroup_throttled_s() -> float | None:
    for path in _CPU_STAT:
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        counters = dict(line.split() for line in lines if line.count(" ") == 1)
        if "throttled_usec" in counters:
            return int(counters["throttled_usec"]) / 1e6
        if "throttled_time" in counters:
            return int(counters["throttled_time"]) / 1e9
    return None
