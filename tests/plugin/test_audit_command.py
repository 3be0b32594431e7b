"""`llmperf audit` in a project whose lanes have no GPU, or two that do not exist."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

TESTS = """
import pytest
pytestmark = pytest.mark.llmperf(model="scripted:", engine="scripted")

@pytest.mark.llmperf_gpus(2)
def test_two(): pass

@pytest.mark.llmperf_gpus(4)
def test_four(llm): pass

@pytest.mark.skip(reason="never")
def test_never(llm): pass

@pytest.mark.llmperf(strategy="nonsense")
def test_wrong(llm): pass

def test_cpu(llm): pass
"""
LANES = """
[pytest]
addopts = --strict-config
llmperf_lanes =
    laptop: -k "not cpu"
    cluster: [2x80GB] -k "not two" --llmperf-gpus=2
"""


@pytest.fixture
def audit(pytester, monkeypatch):
    """Run the command in the project. The variable of the shell is not the lanes'."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pytester.makepyfile(test_it=TESTS)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest_llmperf", "audit", *arguments]
        return subprocess.run(
            command, cwd=pytester.path, capture_output=True, text=True, check=False
        )

    return run


def test_tests_that_no_lane_runs_are_listed_with_every_lanes_reason(pytester, audit):
    """As JSON and in words; nothing is run, and the exit code says that there are some."""
    (pytester.path / "pytest.ini").write_text(LANES)
    done = audit("--json")
    assert done.returncode == 1, done.stdout + done.stderr
    orphans = {
        row["test"].partition("::")[2]: row["reasons"]
        for row in json.loads(done.stdout)["audit"]["orphans"]
    }
    assert set(orphans) == {"test_two", "test_four", "test_never", "test_wrong"}
    assert orphans["test_two"]["laptop"].startswith(
        "skipped: llmperf-gpus: needs 2 GPUs, the pool has 0"
    )
    assert orphans["test_two"]["cluster"] == "deselected"
    assert orphans["test_four"]["cluster"].startswith(
        "skipped: llmperf-gpus: needs 4 GPUs, the pool has 2"
    )
    assert orphans["test_never"]["laptop"] == "skipped: never"
    assert orphans["test_wrong"]["laptop"].startswith(
        "error: strategy part 'nonsense' is not known"
    )


def test_a_project_whose_lanes_run_everything_says_so(pytester, audit):
    (pytester.path / "pytest.ini").write_text("[pytest]\nllmperf_lanes =\n    big: [4x80GB]\n")
    pytester.makepyfile(
        test_it=TESTS.replace('"nonsense"', '"bf16"').replace(
            '@pytest.mark.skip(reason="never")', ""
        )
    )
    done = audit()
    assert (done.returncode, done.stdout) == (
        0,
        (
            "lane  GPUs    tests that run\nbig   4x80GB  5 of 5\n"
            "Every test runs in at least one lane.\n"
        ),
    )


def test_a_lane_that_cannot_be_collected_is_named(pytester, audit):
    (pytester.path / "pytest.ini").write_text(
        "[pytest]\nllmperf_lanes =\n    bad: --no-such-option\n"
    )
    done = audit()
    assert done.returncode == 1
    assert "lane 'bad' cannot be collected (exit code 4):" in done.stderr
    assert "--no-such-option" in done.stderr
