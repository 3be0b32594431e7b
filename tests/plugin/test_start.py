"""`llmperf run` and `--llmperf-record`, in sessions of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_llmperf.history.store import open_store


@pytest.fixture
def store(pytester):
    """The stored records of the project, once something is stored."""

    def read():
        with open_store("sqlite:///.llmperf/history.db", folder=pytester.path) as opened:
            return list(opened.records())

    return read


def test_a_model_is_measured_without_a_test_file(pytester, store):
    """Beside a suite of its own, a conftest that breaks and options that would change it."""
    pytester.makeini("[pytest]\naddopts = -k nothing\npython_functions = check_*\n")
    pytester.makeconftest("raise RuntimeError('loaded')")
    pytester.makepyfile("def test_own(): assert False")
    command = ["run", "scripted:tpot=10ms", "--engine=scripted", "--strategies=fp32,bf16"]
    more = ["--workload=Decode(prompt_tokens=8, new_tokens=11)", "--", "--llmperf-in-process"]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest_llmperf", *command, *more],
        cwd=pytester.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "2 passed" in finished.stdout
    assert {(record.test, record.strategy, record.workload_text) for record in store()} == {
        (f"llmperf run scripted:tpot=10ms::test_model[{name}]", name, "decode b1 p8 n11")
        for name in ("fp32", "bf16")
    }


def test_sessions_are_recorded_in_a_row(project, run, store):
    """Each is a session of its own, and the row says what comes next."""
    project("def test_speed(llm):\n    llm.run(WORK)\n")
    result = run("--llmperf-record=2")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["llmperf: session 2 of 2 is recorded *", "llmperf: next, *"])
    assert len({record.session_id for record in store()}) == 2
    result = run("--llmperf-record=two")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--llmperf-record='two': a whole number of at least 1 *"])
