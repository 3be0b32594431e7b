"""The few git commands that comparisons need.

None of them touches the user's checkout, index or branches.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pytest_llmperf.errors import UsageError

_LOCAL = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_OBJECT_DIRECTORY",
    "GIT_COMMON_DIR",
)


def git(folder: Path, *arguments: str) -> str:
    """Standard output of a git command in `folder`, stripped.

    Raises UsageError with git's own words.
    """
    finished = run_git(folder, *arguments)
    if finished.returncode != 0:
        message = finished.stderr.strip() or f"exit code {finished.returncode}"
        raise UsageError(f"git {' '.join(arguments)} in {folder}: {message}")
    return finished.stdout.strip()


def run_git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a git command in `folder`, without hooks, in English.

    Raises UsageError where there is no git.
    """
    command = [
        "git",
        "--no-optional-locks",
        "-c",
        f"core.hooksPath={os.devnull}",
        "-c",
        "advice.detachedHead=false",
        *arguments,
    ]
    try:
        return subprocess.run(  # noqa: S603 - fixed words and a revision that rev-parse took
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            env=_env(),
        )
    except OSError as error:
        raise UsageError(
            f"git cannot be run: {error}. Install it, or name a folder or an interpreter."
        ) from error


def top_level(folder: Path) -> Path | None:
    """The root of the work tree that `folder` is in; None outside of one."""
    finished = run_git(folder, "rev-parse", "--show-toplevel")
    return Path(finished.stdout.strip()) if finished.returncode == 0 else None


def commit_of(folder: Path, revision: str) -> str | None:
    """The commit that a revision names; None if it names none."""
    finished = run_git(
        folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"
    )
    return finished.stdout.strip() if finished.returncode == 0 else None


def refusal(folder: Path) -> str:
    """What git says where it refuses a repository of another owner, with its remedy; else ""."""
    said = run_git(folder, "rev-parse", "--show-toplevel").stderr.strip()
    return " ".join(said.split()) if "dubious ownership" in said else ""


def is_shallow(folder: Path) -> bool:
    """Whether the repository lacks the older commits, as a checkout of CI does."""
    return run_git(folder, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"


def _env(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment without the variables of an outer repository, which a git hook sets."""
    return {name: value for name, value in base.items() if name not in _LOCAL} | {
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
    }
