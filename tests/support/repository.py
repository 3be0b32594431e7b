"""A git repository with a scripted project whose commits differ in speed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
import time
import pytest
from pytest_llmperf import Decode
from speed import TPOT

pytestmark = pytest.mark.llmperf(model=f"scripted:ttft=50ms,tpot={TPOT}", engine="scripted")
WORK = Decode(batch=1, prompt_tokens=8, new_tokens=11)


def test_speed(llm):
    assert llm.run(WORK).throughput > 1
"""


IGNORED = ".llmperf\n__pycache__\n*.jsonl\n.benchmarks\nstdout\nstderr\nrunpytest*\n"


class Repository:
    """The project in `path`.

    `commit` writes files and commits them; `write` leaves them uncommitted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
        self.git("init", "-q", "-b", "main")
        self.git("config", "user.email", "a@example.org")
        self.git("config", "user.name", "A")
        self.write(**{"pytest.ini": "[pytest]\n", ".gitignore": IGNORED})

    def git(self, *words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=self.path, check=True, capture_output=True, text=True
        ).stdout.strip()

    def write(self, **files: str) -> None:
        for name, text in files.items():
            place = self.path / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")

    def speed(self, tpot: str) -> None:
        self.write(**{"speed.py": f'TPOT = "{tpot}"\n'})

    def commit(self, message: str, **files: str) -> str:
        self.write(**files)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def state(self) -> tuple[str, ...]:
        """Everything of the checkout that a comparison must leave alone."""
        inside = [p.relative_to(self.path) for p in self.path.glob(".git/**/*")]
        files = sorted(str(p) for p in inside if not {"objects", "packed-refs"} & set(p.parts))
        refs = self.git("for-each-ref", "--format=%(refname) %(objectname)")
        return (
            self.git("status", "--porcelain"),
            self.git("rev-parse", "HEAD"),
            refs,
            self.git("worktree", "list"),
            *files,
        )

    def llmperf(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest_llmperf", *words]
        return subprocess.run(
            command,
            cwd=self.path,
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, **environ},
            timeout=300,
        )


def worktrees(cache: Path) -> list[Path]:
    """The work trees that are left in this cache folder."""
    folder = cache / "worktrees"
    return list(folder.iterdir()) if folder.is_dir() else []
