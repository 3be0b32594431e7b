"""What else happened on the machine around a timed run: throttling and foreign load.

It is read before and after the run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import psutil

from pytest_llmperf.core.trace import Mark
from pytest_llmperf.instruments.cpu_time import ON_A_GPU, CpuTimer
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

RANKS_ELSEWHERE = "a rank of the model is on another host, and its CPU time is not seen here"

_CPU_STAT = (Path("/sys/fs/cgroup/cpu.stat"), Path("/sys/fs/cgroup/cpu/cpu.stat"))


@dataclass(frozen=True)
class Telemetry:
    """Telemetry of one region, and the marks it earns.

    `cpu_s` is the CPU time of those that worked in it, None where `no_cpu_s` says why not.
    """

    gauges: dict[str, float]
    marks: tuple[Mark, ...]
    cpu_s: float | None = None
    no_cpu_s: str = ""


class Watch(Protocol):
    """Started before a timed region, finished after it. Does nothing in between."""

    def start(self) -> None:
        """Read what must be known before."""

    def finish(self) -> Telemetry:
        """Read again and judge."""


class CpuWatch:
    """Others' share of the cores this process may run on, and the container's throttling.

    The share is busy and steal time minus our own. `peers` are ids of the processes that work on
    the same thing: the other ranks of a model are no foreign load, and their CPU time counts.
    `no_cpu_s` says why that time is not what the work took, where it is not.
    """

    def __init__(self, peers: tuple[int, ...] = (), *, no_cpu_s: str = "") -> None:
        cores = set(own_cores())
        self._timer = CpuTimer(peers)
        self._no_cpu_s = no_cpu_s
        # Peers on other cores are not counted as busy.
        self._peers = tuple(pid for pid in peers if cores & os.sched_getaffinity(pid))
        self._before: CpuReading | None = None

    def start(self) -> None:
        """Read the counters; the timer comes last, so that the others cost it nothing."""
        self._before = read_cpu(self._peers)
        self._timer.start()

    def finish(self) -> Telemetry:
        """Read them again and judge the difference. Raises RuntimeError when not started."""
        if self._before is None:
            raise RuntimeError("finish() without start()")
        cpu_s = self._timer.elapsed_s()
        seen = judge_cpu(self._before, read_cpu(self._peers), cores=len(own_cores()))
        if self._no_cpu_s:
            return replace(seen, no_cpu_s=self._no_cpu_s)
        return replace(seen, cpu_s=cpu_s)


@dataclass(frozen=True)
class CpuReading:
    """Cumulative times in s.

    `busy_s` is of the cores we may run on, with steal; `own_s` of this process, its peers, and all
    their children.
    """

    t_s: float
    busy_s: float
    own_s: float
    throttled_s: float | None


def read_cpu(peers: Sequence[int] = ()) -> CpuReading:
    """Read the counters. Costs well under 1 ms.

    Raises NoSuchProcess if a peer is gone: the run is lost anyway.
    """
    by_core = psutil.cpu_times(percpu=True)
    own = sum(sum(psutil.Process(pid).cpu_times()[:4]) for pid in (os.getpid(), *peers))
    busy = sum(_busy_s(by_core[core]) for core in own_cores(len(by_core)))
    return CpuReading(time.perf_counter(), busy, own, _cgroup_throttled_s())


def own_cores(n_seen: int | None = None) -> tuple[int, ...]:
    """Return the numbers of the cores this process may run on.

    They are all that are seen where some are offline, for then no number is sure.
    """
    n = os.cpu_count() or 1 if n_seen is None else n_seen
    allowed = tuple(sorted(os.sched_getaffinity(0)))
    return allowed if n == os.sysconf("SC_NPROCESSORS_CONF") else tuple(range(n))


def _busy_s(times: Any) -> float:
    idle = times.idle + getattr(times, "iowait", 0.0)
    # On Linux the user's time already includes the guests'.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - idle - guests)


def judge_cpu(before: CpuReading, after: CpuReading, cores: int) -> Telemetry:
    """Return what two readings say about the region between them. Pure."""
    gauges: dict[str, float] = {}
    marks: list[Mark] = []
    foreign = foreign_share(before, after, cores)
    if foreign is not None:
        gauges["foreign_cpu_share"] = foreign
        marks += foreign_cpu_marks(foreign, cores)
    throttled = _throttled_share(before, after)
    if throttled is not None:
        gauges["cgroup_throttled_share"] = throttled
        marks += _quota_marks(throttled)
    return Telemetry(gauges, tuple(marks))


def foreign_share(before: CpuReading, after: CpuReading, cores: int) -> float | None:
    """Return others' share of the cores; None for a region that is too short to judge."""
    wall_s = after.t_s - before.t_s
    if wall_s < SHORTEST_JUDGED_S:
        return None
    foreign_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return max(0.0, foreign_s) / (wall_s * cores)


def _throttled_share(before: CpuReading, after: CpuReading) -> float | None:
    """Return the share of the region that the quota stopped us; None where it is not known."""
    wall_s = after.t_s - before.t_s
    if before.throttled_s is None or after.throttled_s is None or wall_s <= 0:
        return None
    return (after.throttled_s - before.throttled_s) / wall_s


def foreign_cpu_marks(share: float, cores: int) -> list[Mark]:
    """Return the mark of a region in which others used this share of the cores. Pure."""
    if share <= FOREIGN_CPU_SHARE:
        return []
    limit = f"(limit {FOREIGN_CPU_SHARE:.0%})"
    detail = f"other processes used {share:.0%} of {cores} cores {limit}"
    return [Mark(kind="foreign-load", detail=detail)]


def _quota_marks(share: float) -> list[Mark]:
    if share <= CGROUP_THROTTLED_SHARE:
        return []
    detail = f"the container's CPU quota stopped it for {share:.0%} of the run"
    return [Mark(kind="throttled", detail=detail)]


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

    def finish(self) -> Telemetry:
        """Read everything; the instantaneous reasons are those right after the run."""
        wall_ns = max(1, time.perf_counter_ns() - self._start_ns)
        active = self._active_reasons()
        shares = self._violation_shares(wall_ns)
        gauges = self._nvml.gauges()
        gauges |= {f"{name}_violation_share": share for name, share in shares.items()}
        gauges["power_capped"] = float(bool(active & POWER_CAP_REASON))
        foreign_pids = self._foreign_pids()
        if foreign_pids is not None:
            gauges["foreign_processes"] = float(len(foreign_pids))
        busy = self._busy(foreign_pids or ())
        marks = (*throttle_marks(active, shares), *foreign_marks(busy))
        return Telemetry(gauges, marks, no_cpu_s=ON_A_GPU)

    def _active_reasons(self) -> int:
        """Return the bit mask of what limits the clocks now; 0 where it cannot be read."""
        reasons = self._nvml.clock_event_reasons()
        return 0 if isinstance(reasons, Unreadable) else reasons

    def _violation_shares(self, wall_ns: int) -> dict[str, float]:
        """Return the share of the region below the wanted clocks, by policy."""
        after = self._nvml.violation_ns()
        return {
            policy: (after[policy] - before_ns) / wall_ns
            for policy, before_ns in self._violations.items()
            if policy in after
        }

    def _foreign_pids(self) -> tuple[int, ...] | None:
        """Return the other processes on the GPU that are not of this session, where known."""
        pids = self._nvml.other_processes()
        if isinstance(pids, Unreadable):
            return None
        return tuple(pid for pid in pids if not of_this_session(pid))

    def _busy(self, foreign_pids: Sequence[int]) -> dict[int, int]:
        """Return the SM use of foreign processes during the region, in percent by pid."""
        use_by_pid = self._nvml.busy_since(self._start_us) if foreign_pids else {}
        if isinstance(use_by_pid, Unreadable):
            return {}
        return {pid: percent for pid, percent in use_by_pid.items() if pid in foreign_pids}


def throttle_marks(active: int, violation_shares: dict[str, float]) -> tuple[Mark, ...]:
    """Return marks for a mask of clock-event reasons and for shares lost to heat. Pure."""
    limiting = [name for name, bit in THROTTLE_REASONS.items() if active & bit]
    marks = [Mark(kind="throttled", detail=f"clock-event reason: {name}") for name in limiting]
    thermal = violation_shares.get("thermal", 0.0)
    if thermal > GPU_THERMAL_SHARE:
        marks.append(
            Mark(kind="throttled", detail=f"below its clocks for heat {thermal:.1%} of the run")
        )
    return tuple(marks)


def foreign_marks(sm_percent_by_pid: dict[int, int]) -> tuple[Mark, ...]:
    """Return marks for other processes that were busy on the GPU. Pure."""
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
