"""What a worker on GPUs is given: its devices, and its part of the CPU cores when pytest-xdist has several at work."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.devices.held import Gpus
from pytest_llmperf.devices.inventory import Gpu
from pytest_llmperf.processes import CORES


def worker_environment(gpus: Gpus, plan: LoadPlan) -> Mapping[str, str]:
    """The variables of the workers of a plan; none on a CPU, where one worker is at work at a time."""
    if not plan.device.startswith("cuda") or not gpus.held:
        return {}
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    cores = share_of_cores(usable, gpus.held, gpus.pool.gpus, os.environ)
    return {**gpus.environment(plan.ranks), CORES: ",".join(map(str, cores))}


def share_of_cores(
    cores: Sequence[int], held: Sequence[Gpu], pool: Sequence[Gpu], environ: Mapping[str, str]
) -> tuple[int, ...]:
    """The cores of a worker that holds `held`.

    All of them where nobody else of this session can be at work.

    No more workers are at work at once than pytest-xdist has processes, nor than the pool has
    devices: the cores are cut in so many equal, adjacent parts. Each process has a part, or each
    device where there are fewer of these.
    """
    processes = int(environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    parts = min(processes, len(pool))
    if parts <= 1 or not held:
        return tuple(cores)
    if processes <= len(pool):
        mine = [_number(environ.get("PYTEST_XDIST_WORKER", "gw0")) % parts]
    else:
        mine = [[gpu.uuid for gpu in pool].index(gpu.uuid) for gpu in held]
    return tuple(sorted({core for part in mine for core in _part(cores, part, parts)}))


def _part(cores: Sequence[int], part: int, parts: int) -> Sequence[int]:
    """At least one core, shared where there are fewer cores than parts."""
    if len(cores) < parts:
        return [cores[part % len(cores)]]
    return cores[len(cores) * part // parts : len(cores) * (part + 1) // parts]


def _number(worker: str) -> int:
    found = re.search(r"\d+$", worker)
    return int(found.group()) if found else 0
