"""What the GPU drivers say: which GPUs there are, what is in use of them, and by whom.

No CUDA context is made and no torch is imported.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import msgspec
import psutil

from pytest_llmperf.devices import amd, nvidia
from pytest_llmperf.devices.inventory import SIMULATED, Gpu, Inventory, Usage, simulated, visible

SIMULATED_USAGE = "LLMPERF_SIMULATED_USAGE"
"""Environment variable: a JSON file with `{uuid: {pid: bytes}}`, read anew each time.

Only for simulated GPUs.
"""

_COMMAND_CHARACTERS = 60


@cache
def inventory() -> Inventory:
    """Return the GPUs that this process sees. The drivers are asked once a process."""
    return read_inventory(os.environ)


def read_inventory(environ: Mapping[str, str]) -> Inventory:
    """Return the GPUs that a process with this environment sees.

    Raises UsageError for a simulated inventory that cannot be read.
    """
    if SIMULATED in environ:
        return simulated(environ[SIMULATED])
    nvidia_gpus, notes = nvidia.listed()
    if nvidia_gpus:
        gpus = visible(nvidia_gpus, environ.get("CUDA_VISIBLE_DEVICES"))
        return msgspec.structs.replace(gpus, notes=(*notes, *gpus.notes))
    return _amd_inventory(environ, notes)


def usage(gpu: Gpu) -> Usage | None:
    """Return the memory of a device now.

    None where the driver does not say (AMD without its library).
    """
    if gpu.uuid.startswith("GPU-simulated-"):
        return _simulated_usage(gpu)
    return amd.usage(gpu) if gpu.vendor == "amd" else nvidia.usage(gpu)


def foreign_processes(gpu: Gpu) -> dict[int, str]:
    """Return the processes with a compute context on the device, by id, in words.

    Those of this session are left out. A process that the driver names by an id that does not exist
    here (a container's ids are its own) is not judged.
    """
    in_use = usage(gpu)
    if in_use is None or not in_use.by_pid:
        return {}
    foreign_pids = sorted(set(in_use.by_pid) - own_pids())
    texts = {pid: _process_text(pid, in_use.by_pid[pid]) for pid in foreign_pids}
    return {pid: text for pid, text in texts.items() if text}


def own_pids() -> set[int]:
    """Return the ids of this process and of all that it started.

    Under pytest-xdist these are the processes of every worker of the session.
    """
    root = _root_process()
    with contextlib.suppress(psutil.Error):
        return _with_descendants(root)
    return {os.getpid()}


def _root_process() -> psutil.Process:
    """Return the process that started the session: under pytest-xdist, a worker's parent."""
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    return psutil.Process(os.getppid() if is_worker else os.getpid())


def _with_descendants(root: psutil.Process) -> set[int]:
    """Return the ids of a process and of all that it started."""
    return {root.pid, *(child.pid for child in root.children(recursive=True))}


def _amd_inventory(environ: Mapping[str, str], nvidia_notes: tuple[str, ...]) -> Inventory:
    gpus, note = amd.listed()
    if not gpus:
        return Inventory(notes=(*nvidia_notes, note))
    variable = _amd_variable(environ)
    return visible(gpus, environ.get(variable), variable)


def _amd_variable(environ: Mapping[str, str]) -> str:
    """Return the name of the variable that says which AMD GPUs a process sees."""
    only_cuda_set = "HIP_VISIBLE_DEVICES" not in environ and "CUDA_VISIBLE_DEVICES" in environ
    return "CUDA_VISIBLE_DEVICES" if only_cuda_set else "HIP_VISIBLE_DEVICES"


def _process_text(pid: int, used_bytes: int | None) -> str:
    """Return a process in words; an empty text for one that is not there."""
    try:
        command = _command(pid)
    except psutil.NoSuchProcess:
        return ""
    return f"process {pid} ({command!r}{_memory_text(used_bytes)})"


def _memory_text(used_bytes: int | None) -> str:
    return "" if used_bytes is None else f", {used_bytes / 1e9:.1f} GB"


def _command(pid: int) -> str:
    """Return the start of a process's command line. Raises psutil.NoSuchProcess."""
    try:
        return " ".join(psutil.Process(pid).cmdline())[:_COMMAND_CHARACTERS]
    except psutil.AccessDenied:
        return "of another user"


def _simulated_usage(gpu: Gpu) -> Usage:
    path = os.environ.get(SIMULATED_USAGE)
    content = Path(path).read_bytes() if path and Path(path).exists() else b"{}"
    by_pid = msgspec.json.decode(content, type=dict[str, dict[int, int]]).get(gpu.uuid, {})
    used = sum(by_pid.values())
    return Usage(used_bytes=used, free_bytes=gpu.total_bytes - used, by_pid=dict(by_pid))
