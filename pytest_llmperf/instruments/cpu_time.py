"""CPU time of processes: user and system, of all threads, and of what they started.

The kernel's own clock of a process counts in nanoseconds, where `/proc/PID/stat` counts in ticks of
10 ms, which is as long as a short repetition.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil

_CPUCLOCK_SCHED = 2
"""linux/posix-timers.h: the clock of a process that counts what its threads ran, in ns."""

ON_A_GPU = "the model runs on a GPU: there the CPU time is that of the host's waiting"


class CpuTimer:
    """CPU time of a region: of this process, of `peers`, and of all that they started.

    What the reading itself costs is outside of the region.
    """

    def __init__(self, peers: Sequence[int] = ()) -> None:
        self._peers = tuple(peers)
        self._before_s = 0.0

    def start(self) -> None:
        """Read the clocks; this process's own comes last."""
        others_s = _others_s(self._peers)
        self._before_s = others_s + _own_s()

    def elapsed_s(self) -> float:
        """Return the seconds since the start; this process's own clock is read first."""
        own_s = _own_s()
        return max(0.0, own_s + _others_s(self._peers) - self._before_s)


def trees_s(roots: Iterable[int]) -> float:
    """Return the CPU time so far of these processes and of all that they started, in seconds.

    A process that is gone counts where its parent waited for it. Processes that are no descendant
    any more, because their parent ended first, are not seen.
    """
    pids = dict.fromkeys(pid for root in roots for pid in (root, *_descendants(root)))
    return sum(map(_process_s, pids))


def _own_s() -> float:
    """Return the time of this process, and of its children that ended and were waited for."""
    children = os.times()
    return time.process_time_ns() / 1e9 + children.children_user + children.children_system


def _others_s(peers: Sequence[int]) -> float:
    return trees_s((*_children(os.getpid()), *peers))


def _process_s(pid: int) -> float:
    """Return the time of a process with its children that ended; 0.0 for one that is gone."""
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        ended_s = float(times.children_user + times.children_system)
        own_s = _clock_s(pid)
        return ended_s + (float(times.user + times.system) if own_s is None else own_s)
    return 0.0


def _clock_s(pid: int) -> float | None:
    """Return the kernel's clock of a process; None where there is no such clock."""
    with contextlib.suppress(OSError, OverflowError):
        return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED) / 1e9
    return None


def _descendants(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield child
        yield from _descendants(child)


def _children(pid: int) -> list[int]:
    """Return the children of all threads of a process; none for one that is gone."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        lists = [(task / "children").read_text(encoding="ascii") for task in tasks.iterdir()]
    except OSError:
        return _children_by_scan(pid)
    return [int(child) for children in lists for child in children.split()]


def _children_by_scan(pid: int) -> list[int]:
    """Return the children, from a look at every process: where the kernel keeps no list of them."""
    with contextlib.suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children()]
    return []
