"""Processes on a GPU that this session did not start."""

from __future__ import annotations

import contextlib
import os

import psutil

from pytest_llmperf.devices.drivers import usage
from pytest_llmperf.devices.inventory import Gpu

_NAME_CHARACTERS = 60


def foreign_processes(gpu: Gpu) -> dict[int, str]:
    """Processes with a compute context on the device, by id, in words.

    Those of this session left out.

    A process that the driver names by an id that does not exist here (a container's ids are its
    own) is not judged.
    """
    seen = usage(gpu)
    others = set(seen.by_pid) - own_pids() if seen is not None and seen.by_pid else set()
    named = {pid: _described(pid, seen.by_pid[pid]) for pid in others} if seen is not None else {}
    return {pid: text for pid, text in sorted(named.items()) if text}


def own_pids() -> set[int]:
    """The ids of this process, of all that it started, and under pytest-xdist the same of every worker of the session."""
    root = psutil.Process(os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid())
    with contextlib.suppress(psutil.Error):
        return {root.pid, *(child.pid for child in root.children(recursive=True))}
    return {os.getpid()}


def _described(pid: int, used_bytes: int | None) -> str:
    """Empty for a process that is not there."""
    try:
        command = " ".join(psutil.Process(pid).cmdline())[:_NAME_CHARACTERS]
    except psutil.NoSuchProcess:
        return ""
    except psutil.AccessDenied:
        command = "of another user"
    memory = "" if used_bytes is None else f", {used_bytes / 1e9:.1f} GB"
    return f"process {pid} ({command!r}{memory})"
