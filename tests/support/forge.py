"""A project on a forge: its checkout, the artifact of earlier jobs, and stand-ins for programs."""

from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from support.repository import TESTS, Repository
from support.stored_sessions import earlier

from pytest_llmperf.history.store import open_store

HISTORY = "llmperf-history.jsonl"
STAND_INS = {
    "pip": 'echo "pip $*" >> "$CALLS"',
    "gh": """case "$1 $2" in
"run list") [ ! -f "$ARTIFACT" ] || echo 17;;
"run download") [ "$3" = 17 ] && cp "$ARTIFACT" .;;
"api --paginate") echo "$COMMENTS";;
"api --silent") echo "gh $*" >> "$CALLS";;
*) exit 2;;
esac""",
    "srun": """echo "srun $*" >> "$CALLS"
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
""",
    "curl": """words=$*
while [ $# -gt 1 ]; do [ "$1" = --output ] && out=$2; shift; done
case "$1" in
https://forge/api/projects/3/jobs/artifacts/main/raw/llmperf-history.jsonl?job=*)
  cp "$ARTIFACT" "$out";;
https://forge/api/projects/3/merge_requests/7/notes?per_page=100) echo "$COMMENTS";;
https://forge/api/projects/3/merge_requests/7/notes*) echo "curl $words" >> "$CALLS";;
*) exit 22;;
esac""",
}


class Forge:
    """A checkout, an artifact of earlier jobs, and stand-ins for programs that talk to a forge."""

    def __init__(self, folder: Path) -> None:
        self.artifact, self._calls, self._programs = (
            folder / HISTORY,
            folder / "calls",
            folder / "bin",
        )
        self._programs.mkdir()
        for name, script in STAND_INS.items():
            (self._programs / name).write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
            (self._programs / name).chmod(0o755)
        self.repo = Repository(folder / "project")
        self.repo.speed("10ms")
        self.repo.commit("base", **{"test_it.py": TESTS})
        self._environ = os.environ | {
            "PATH": f"{self._programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ARTIFACT": str(self.artifact),
            "CALLS": str(self._calls),
            "HOME": str(folder),
            "GITHUB_BASE_REF": "main",
            "CI_API_V4_URL": "https://forge/api",
            "CI_PROJECT_ID": "3",
            "CI_DEFAULT_BRANCH": "main",
            "CI_JOB_TOKEN": "t",
        }

    @property
    def calls(self) -> str:
        """What the stand-ins were asked, a line each."""
        return self._calls.read_text(encoding="utf-8") if self._calls.exists() else ""

    def branch(self, tpot: str) -> None:
        """A pull request: a commit of that speed on the base."""
        origin = self.repo.path / ".git" / "refs" / "remotes" / "origin"
        origin.mkdir(parents=True, exist_ok=True)
        (origin / "main").write_text(self.repo.git("rev-parse", "HEAD") + "\n", encoding="utf-8")
        self.repo.speed(tpot)
        self.repo.commit("change")

    def steps(self, scripts: list[str], **environ: str) -> tuple[int, str]:
        """Run them as a runner does: each in a shell that stops at the first error.

        The first that fails ends the job.
        """
        said = ""
        for script in scripts:
            done = subprocess.run(
                ["bash", "-eo", "pipefail", "-c", script],
                check=False,
                cwd=self.repo.path,
                env=self._environ | environ,
                capture_output=True,
                text=True,
                timeout=120,
            )
            said += done.stdout + done.stderr
            if done.returncode:
                return done.returncode, said
        return 0, said

    def keep(self, *, sessions: int = 0) -> None:
        """Write the artifact that the job uploads, with earlier sessions in the store."""
        draw = random.Random(0)
        with open_store("sqlite:///.llmperf/history.db", folder=self.repo.path) as store:
            newest = next(iter(store.records()))
            for n in range(1, sessions + 1):
                store.add(earlier(newest, n, math.exp(0.005 * draw.gauss(0, 1))))
        done = self.repo.llmperf("export", "--out", HISTORY)
        assert done.returncode == 0, done.stderr
        shutil.copy(self.repo.path / HISTORY, self.artifact)

    def record(self) -> None:
        """Record eleven sessions of main, and keep their artifact."""
        code, said = self.steps(["pytest"])
        assert code == 0, said
        self.keep(sessions=10)

    def fresh(self) -> None:
        """The next job starts from a clean checkout."""
        shutil.rmtree(self.repo.path / ".llmperf", ignore_errors=True)
        (self.repo.path / HISTORY).unlink(missing_ok=True)
