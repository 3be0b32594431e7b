"""Facts about this host and about the tested project. Unknown is None, never guessed."""

from __future__ import annotations

import os
import platform
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_llmperf.core.record import Fact

_UNLIMITED_BYTES = 2**60  # version 1 control groups say "no limit" as a huge number
_GIT_TIMEOUT_S = 5
# Of GitHub (a pull request's own branch first) and GitLab, which check out a commit.
_BRANCH_VARIABLES = ("GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_BRANCH")


def host_facts(
    proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> dict[str, Fact]:
    """Return facts about the CPU, memory, limits of the container, and system.

    Memory in bytes, cores as numbers (a quota may be a fraction).
    """
    import psutil  # noqa: PLC0415 - only when something is measured

    usable = _usable_cores()
    cores = [float(limit) for limit in (usable, cpu_quota(proc, cgroups)) if limit is not None]
    total = int(psutil.virtual_memory().total)
    return {
        "cpu_model": cpu_model(proc),
        "cpu_cores": os.cpu_count(),
        "cpu_cores_physical": psutil.cpu_count(logical=False),
        "cpu_cores_usable": usable,
        "cpu_cores_limit": min(cores, default=None),
        "memory_total_bytes": total,
        "memory_limit_bytes": min(total, memory_limit_bytes(proc, cgroups) or total),
        "os": platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "host": platform.node() or None,
    }


def cpu_model(proc: Path = Path("/proc")) -> str | None:
    """Return the CPU's model name."""
    names = _model_names(_read(proc / "cpuinfo") or "")
    return next(names, None) or platform.processor() or None


def _model_names(cpuinfo: str) -> Iterator[str]:
    """Give the model name of each core that /proc/cpuinfo lists."""
    for line in cpuinfo.splitlines():
        if line.startswith("model name"):
            yield line.partition(":")[2].strip()


def cpu_quota(proc: Path, cgroups: Path) -> float | None:
    """Return the cores that the control groups of this process may use: the tightest limit.

    None without a quota.
    """
    quotas = _quotas(proc, cgroups)
    return min((quota for quota in quotas if quota is not None), default=None)


def _quotas(proc: Path, cgroups: Path) -> Iterator[float | None]:
    """Give the quota of each control group of this process, of both versions."""
    yield from map(_quota_v2, _groups(proc, cgroups, ""))
    yield from map(_quota_v1, _groups(proc, cgroups, "cpu"))


def memory_limit_bytes(proc: Path, cgroups: Path) -> int | None:
    """Return the bytes that the control groups of this process may use: the tightest limit.

    None without a limit.
    """
    files = [
        *(folder / "memory.max" for folder in _groups(proc, cgroups, "")),
        *(folder / "memory.limit_in_bytes" for folder in _groups(proc, cgroups, "memory")),
    ]
    limits = [_number(_read(file)) for file in files]
    return min((n for n in limits if n is not None and n < _UNLIMITED_BYTES), default=None)


def project_name(folder: Path) -> str:
    """Return the project's name from the folder's pyproject.toml, else the folder's name."""
    table = _pyproject(folder).get("project")
    name = _declared_name(table)
    return name or folder.resolve().name


def _declared_name(project_table: object) -> str:
    """Return the name that pyproject.toml's [project] table declares, empty without one."""
    name = project_table.get("name") if isinstance(project_table, dict) else None
    return name if isinstance(name, str) else ""


def _pyproject(folder: Path) -> dict[str, Any]:
    """Return the content of the folder's pyproject.toml, nothing where it cannot be parsed."""
    try:
        return tomllib.loads(_read(folder / "pyproject.toml") or "")
    except tomllib.TOMLDecodeError:
        return {}


def project_facts(folder: Path) -> dict[str, Fact]:
    """Return the commit and branch of the git work tree of `folder`.

    And whether a tracked file is changed. All are None outside of a work tree, and the branch where
    a commit was checked out and no CI system says which branch it is of.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"git_commit": None, "git_dirty": None, "git_branch": None}
    return {
        "git_commit": commit,
        "git_dirty": _has_changes(folder),
        "git_branch": _branch(folder),
    }


def _branch(folder: Path) -> str | None:
    names = (os.environ.get(name) for name in _BRANCH_VARIABLES)
    branch = next(filter(None, names), None) or _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
    return None if branch in (None, "HEAD") else branch


def _has_changes(folder: Path) -> bool | None:
    """Whether a tracked file is changed; None where git cannot say."""
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if changes is None else bool(changes)


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _groups(proc: Path, cgroups: Path, controller: str) -> list[Path]:
    """Return the folders of the process's group and its ancestors.

    They are those of a version 1 controller, or of version 2 for no name ("").
    """
    base = cgroups / controller if controller else cgroups
    folders = [base]
    for line in (_read(proc / "self" / "cgroup") or "").splitlines():
        _hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            group = base / path.lstrip("/")
            folders += [group, *(parent for parent in group.parents if base in parent.parents)]
    return list(dict.fromkeys(folders))


def _quota_v2(folder: Path) -> float | None:
    """Return the cores of a group's file, whose line is "quota period"."""
    quota, period = [*(_read(folder / "cpu.max") or "").split(), None, None][:2]
    return _share(_number(quota), _number(period))


def _quota_v1(folder: Path) -> float | None:
    """Return the cores of a group's two files."""
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return _share(_number(quota), _number(period))


def _share(quota: int | None, period: int | None) -> float | None:
    return quota / period if quota and period else None


def _number(text: str | None) -> int | None:
    """Return a whole number; None for no file, "max" (no limit) and -1 (no limit, version 1)."""
    stripped = (text or "").strip()
    return int(stripped) if stripped.isascii() and stripped.isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", *arguments]
    try:
        process = subprocess.run(  # noqa: S603 - fixed words
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=_GIT_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return process.stdout.strip() if process.returncode == 0 else None
