"""Looks at what other programs do on the cores that this session may use, and names them.

Read from pytest's process: everything that it started is its own. Processes are named by id and by
the kernel's name of the program (15 characters): never by their arguments, which may hold secrets.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil

from pytest_llmperf.core.foreign_load import PATIENCE_S
from pytest_llmperf.errors import InvalidRun
from pytest_llmperf.instruments.cpu_time import trees_s
from pytest_llmperf.instruments.telemetry import (
    FOREIGN_CPU_SHARE,
    CpuReading,
    foreign_share,
    own_cores,
    read_cpu,
)

GLANCE_S = 0.25
"""The first look: a quiet machine costs no more. 25 ticks of the kernel's counters a core."""

WINDOW_S = 1.0
"""One look at a machine that is not quiet. One of them below the limit, and the load is not steady.
"""

MOST_NAMED = 3
ALLOW = "--llmperf-allow-load"

Wait = Callable[[float], None]


class Busy(NamedTuple):
    """A process that is not ours, and its CPU time over wall time (1.0: a whole core)."""

    pid: int
    name: str
    cores: float

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}, {self.cores:.0%} of a core)"


class Look(NamedTuple):
    """What others used of the cores between two readings, 0 to 1, and the busiest of them."""

    share: float
    n_cores: int
    busiest: tuple[Busy, ...]

    def __str__(self) -> str:
        names = ", ".join(map(str, self.busiest))
        named_share = sum(busy.cores for busy in self.busiest) / self.n_cores
        unseen = "" if named_share >= self.share / 2 else _UNSEEN
        busiest = f"the busiest: {names}{unseen}" if names else unseen.removeprefix("; ")
        return f"other programs use {self.share:.0%} of {self.n_cores} cores; {busiest}"


_Process = tuple[int, float]
"""The id of a process and its start time, for an id is used again."""

_Processes = Mapping[_Process, tuple[str, float]]
"""The name and the CPU seconds of every process that is not ours."""

_UNSEEN = "; the rest are short-lived processes, or are outside of this container"


def require_quiet(
    show: Callable[[str], None], *, wait: Wait = time.sleep, patience_s: float = PATIENCE_S
) -> None:
    """Return when other programs leave the cores free, or work on them now and then.

    `show` is told what is seen while the machine is looked at. Raises InvalidRun, with the busiest
    three, where they went past the limit in every window for `patience_s`.
    """
    look = look_for(GLANCE_S, wait=wait, name=False)
    waited_s = 0.0
    while look.share > FOREIGN_CPU_SHARE and waited_s < patience_s:
        look = look_for(WINDOW_S, wait=wait)
        waited_s += WINDOW_S
        show(str(look))
    if look.share > FOREIGN_CPU_SHARE:
        raise InvalidRun(f"{look}. {advice(waited_s)}")


def advice(waited_s: float) -> str:
    """Say why nothing is measured beside steady load, and what to do."""
    return (
        f"For {waited_s:g} s it was never below {FOREIGN_CPU_SHARE:.0%}, the limit. "
        f"Close them, or give {ALLOW} to measure beside them: the run is marked then, and no later "
        "session is held against it."
    )


def look_for(seconds: float, *, wait: Wait = time.sleep, name: bool = True) -> Look:
    """Look at what others use for so long; `name` names the busiest, which costs some 10 ms."""
    before, processes_before = _reading(), _processes() if name else None
    wait(seconds)
    processes_after = _processes() if name else None
    after = _reading()
    n_cores = len(own_cores())
    share = foreign_share(before, after, n_cores) or 0.0
    if processes_before is None or processes_after is None:
        return Look(share, n_cores, ())
    wall_s = max(after.t_s - before.t_s, 1e-9)
    return Look(share, n_cores, _busiest(processes_before, processes_after, wall_s))


def _reading() -> CpuReading:
    return replace(read_cpu(), own_s=trees_s((os.getpid(),)))


def _busiest(before: _Processes, after: _Processes, wall_s: float) -> tuple[Busy, ...]:
    busy = [
        Busy(process[0], name, (after_s - before.get(process, ("", 0.0))[1]) / wall_s)
        for process, (name, after_s) in after.items()
    ]
    busy.sort(key=lambda process: process.cores, reverse=True)
    return tuple(process for process in busy[:MOST_NAMED] if process.cores >= 0.01)  # noqa: PLR2004


def _processes() -> _Processes:
    own = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    processes: dict[_Process, tuple[str, float]] = {}
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        try:
            times = process.cpu_times()
            key = process.pid, process.create_time()
            processes[key] = (_name(process), float(times.user + times.system))
        except psutil.Error:
            continue
    return processes


def _name(process: psutil.Process) -> str:
    """Return the program's name without arguments, whatever it calls itself."""
    try:
        name = Path(f"/proc/{process.pid}/comm").read_text(encoding="utf-8", errors="replace")
    except OSError:
        name = process.name()
    shown = "".join(char if char.isprintable() else "?" for char in name.strip())
    return shown or "?"
