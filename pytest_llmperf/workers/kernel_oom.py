"""Whether the kernel's out-of-memory killer struck between two looks at its counters.

Reading these needs no privileges.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")


def read_counters(*, cgroup_root: Path = CGROUP_ROOT, proc: Path = PROC) -> dict[str, int]:
    """Return how many processes were killed so far, by the file that says so.

    The files are the counter of this cgroup (v2 or v1) and the host's; unreadable ones are left
    out.
    """
    counters = {}
    for path in (*_cgroup_files(cgroup_root, proc), proc / "vmstat"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            counters[str(path)] = _counter(path)
    return counters


def killed_since(before: dict[str, int], now: dict[str, int]) -> str | None:
    """Return a sentence when any counter rose, else None."""
    rises = [
        f"{path}: oom_kill {before[path]} -> {count}"
        for path, count in now.items()
        if count > before.get(path, count)
    ]
    return (
        f"The kernel's out-of-memory killer struck since the worker started ({'; '.join(rises)})."
        if rises
        else None
    )


def _cgroup_files(root: Path, proc: Path) -> list[Path]:
    files = []
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                files.append(root / path.lstrip("/") / "memory.events")
            elif "memory" in controllers.split(","):
                files.append(root / "memory" / path.lstrip("/") / "memory.oom_control")
    return files


def _counter(path: Path) -> int:
    rows = dict(line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines())
    return int(rows["oom_kill"])
