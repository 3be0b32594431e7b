"""`llmperf bisect`: the commit that made a metric worse, by name, with its evidence.

Real git, scripted models.
"""

from __future__ import annotations

import json
import os

import pytest
from support.repository import TESTS, Repository


@pytest.fixture
def repo(tmp_path, monkeypatch) -> Repository:
    """A project whose worker's leases are its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return Repository(tmp_path / "project")


def history(repo: Repository, *speeds: str | None) -> list[str]:
    """One commit a speed; None is a commit that cannot be imported."""
    commits = []
    for number, tpot in enumerate(speeds):
        module = "raise RuntimeError('half done')\n" if tpot is None else f'TPOT = "{tpot}"\n'
        commits.append(repo.commit(f"commit {number}", **{"speed.py": module, "test_it.py": TESTS}))
    return commits


@pytest.mark.nightly
def test_the_first_bad_of_nine_commits_is_named_past_one_that_cannot_run(repo, own_cache):
    """Commit 3 cannot be imported, commit 6 did it: named with ratio, pairs and evidence.

    Unfinished work stays as it is.
    """
    commits = history(
        repo, "10ms", "10ms", "10ms", None, "10ms", "10ms", "11.5ms", "11.5ms", "11.5ms"
    )
    repo.write(**{"speed.py": "unfinished", "notes.txt": "mine"})
    before = repo.state()
    done = repo.llmperf(
        "bisect", "throughput", commits[0], "main", "--json", "--", "-q", "test_it.py"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)["found"]
    first = found["first_bad"]
    assert (first["commit"], first["subject"], first["outcome"]) == (commits[6], "commit 6", "FAIL")
    assert first["ratio"] == pytest.approx(150 / 165, rel=0.01)
    assert first["pairs"] >= 6
    assert float(first["evidence"]) >= 100
    assert len(found["steps"]) <= 6
    assert (repo.path / "speed.py").read_text() == "unfinished"
    assert repo.state() == before
    assert list((own_cache / "worktrees").iterdir()) == []


@pytest.mark.skipif(
    "LLMPERF_NIGHTLY" not in os.environ, reason="ten seconds more of the same: make nightly runs it"
)
def test_commits_that_cannot_be_told_apart_are_named_as_a_range(repo):
    """Commit 1 cannot run, commit 2 is slower: either did it.

    Exit code 3, with the reason why 1 was skipped.
    """
    commits = history(repo, "10ms", None, "11.5ms", "11.5ms")
    done = repo.llmperf("bisect", "throughput", commits[0], "main", "--", "test_it.py")
    assert done.returncode == 3, done.stdout + done.stderr
    suspects = done.stdout.partition("one of these")[2]
    assert [commit for commit in commits if commit in suspects] == commits[1:3]
    assert "half done" in suspects
    assert "\\n" not in done.stdout, "an escaped line break"


@pytest.mark.nightly
def test_a_bad_that_is_not_worse_is_nothing_to_look_for(repo):
    """PASS at once: exit code 4."""
    commits = history(repo, "10ms", "12ms", "10ms")
    done = repo.llmperf("bisect", "throughput", commits[0], commits[2], "--", "test_it.py")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "is not seen to be worse" in done.stdout


def test_what_cannot_be_walked_or_measured_is_said(repo):
    """GOOD after BAD; no such commit; a metric that is none; a test that GOOD does not have."""
    commits = history(repo, "10ms", "12ms")
    assert (
        "not an earlier commit"
        in repo.llmperf("bisect", "throughput", commits[1], commits[0]).stderr
    )
    assert "'v9' is not a commit" in repo.llmperf("bisect", "throughput", "v9", commits[0]).stderr
    assert "Did you mean 'throughput'?" in repo.llmperf("bisect", "throughputs", *commits).stderr
    repo.commit("new test", **{"test_new.py": TESTS})
    done = repo.llmperf("bisect", "throughput", commits[0], "main", "--", "test_new.py")
    assert (done.returncode, "the base has no such test" in done.stderr) == (1, True), done.stderr
