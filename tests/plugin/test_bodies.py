"""Tests whose body runs in processes of their own: what they report, and what cannot pass.

Each body is a pytest process, so that one project holds as many cases as will go together.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

Body = Callable[..., pytest.RunResult]


@pytest.fixture
def body(pytester: pytest.Pytester) -> Body:
    """Run a file that starts with the usual imports, in a process of its own."""

    def run(text: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_body="import os, sys, time, pytest\n" + text)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rA", *args)

    return run


def said(result: pytest.RunResult) -> str:
    return re.sub(r"\s+", " ", result.stdout.str())


OUTCOMES = """
pytestmark = pytest.mark.llmperf_isolated
HERE = os.getpid()

def test_passes(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEN", str(tmp_path))
    print("said in", HERE == os.getpid())

def test_fails():
    left, right = 1, 2
    assert left == right, "not the same"

def test_skips():
    pytest.skip("not today")

@pytest.mark.xfail(reason="known")
def test_is_expected_to_fail():
    assert False

@pytest.mark.xfail(strict=True, reason="known")
def test_passes_unexpectedly():
    pass

@pytest.fixture
def broken():
    raise RuntimeError("no fixture")

def test_with_a_broken_fixture(broken):
    pass

@pytest.fixture
def late():
    yield
    raise RuntimeError("late trouble")

def test_with_a_broken_teardown(late):
    pass
"""


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param([], id="plain"),
        pytest.param(["-n", "2"], id="xdist", marks=pytest.mark.nightly),
    ],
)
def test_every_outcome_of_an_isolated_body_is_the_tests_own(body, workers):
    result = body(OUTCOMES, *workers)
    result.assert_outcomes(passed=1, failed=2, skipped=1, xfailed=1, errors=2)
    text = said(result)
    for part in ("assert 1 == 2", "said in True", "not today", "no fixture", "late trouble"):
        assert part in text


LEAVING = """
@pytest.mark.llmperf_isolated
@pytest.mark.parametrize("leave", [
    lambda: os._exit(0),
    lambda: os._exit(3),
    lambda: os.kill(os.getpid(), 11),
    lambda: pytest.exit("enough"),
], ids=["exit0", "exit3", "segfault", "pytest-exit"])
def test_leaves(leave):
    sys.modules["leaked"] = sys
    leave()

def test_after():
    assert "leaked" not in sys.modules
"""


def test_a_body_that_leaves_without_a_report_fails(body):
    """An exit code of 0 proves nothing: the body's own report has to arrive."""
    result = body(LEAVING, "-W", "error")
    result.assert_outcomes(passed=1, failed=4)
    text = said(result)
    for part in (
        "ended by exit code 0",
        "ended by exit code 3",
        "ended by signal SIGSEGV",
        "began and never ended",
    ):
        assert part in text


def test_a_body_that_never_ran_fails(pytester, body):
    """A plugin that takes the call's place in the body's process would make every test green."""
    pytester.makeconftest(
        "import pytest, sys\n@pytest.hookimpl(tryfirst=True)\ndef pytest_pyfunc_call(pyfuncitem):\n"
        "    return True if pyfuncitem.config.pluginmanager.has_plugin('llmperf-body-side') "
        "else None\n",
    )
    result = body("@pytest.mark.llmperf_isolated\ndef test_it():\n    assert False\n")
    result.assert_outcomes(failed=1)
    assert "the body never ran" in said(result)


RANKS = """
pytestmark = pytest.mark.llmperf_ranks(2)

def test_place(llmperf_rank):
    assert llmperf_rank.world_size == 2
    assert int(os.environ["RANK"]) == llmperf_rank.rank
    print("I am", llmperf_rank.rank, "at", os.environ["MASTER_PORT"])

def test_one_fails(llmperf_rank):
    assert llmperf_rank.rank == 0, "only the second"

def test_one_skips(llmperf_rank):
    if llmperf_rank.rank: pytest.skip("no device")

def test_one_leaves(llmperf_rank):
    if llmperf_rank.rank: os._exit(0)

def test_all_skip():
    pytest.skip("nowhere")

@pytest.mark.llmperf_ranks(2, timeout=8)
def test_one_hangs(llmperf_rank):
    if llmperf_rank.rank: time.sleep(3600)
"""


@pytest.mark.nightly
def test_a_body_runs_once_in_each_rank_and_a_rank_that_does_otherwise_is_named(body):
    """The hang comes before nothing and after everything: the ranks that go on wait for nobody."""
    result = body(RANKS)
    result.assert_outcomes(passed=1, failed=4, skipped=1)
    text = said(result)
    for part in (
        "I am 0 at",
        "I am 1 at",
        "rank 1 of 2: failed in call; rank 0 passed, rank 1 failed",
        "the ranks disagree: rank 0 passed, rank 1 skipped (no device)",
        "worker rank 1 of 2",
        "hung in RunBody",
        "in test_one_hangs",
    ):
        assert part in text


def test_records_of_a_measured_body_are_this_sessions(pytester, project):
    project(
        "\n@pytest.mark.llmperf_isolated\ndef test_it(llm):\n"
        "    assert llm.run(WORK).ttft.p50 <= 60 * ms\n"
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--llmperf-json=out.jsonl")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*test_it*PASS*"])
    assert '"throughput"' in (pytester.path / "out.jsonl").read_text()


MARKS = {
    "llmperf_ranks(0)": "a number of ranks of at least 1 is needed",
    "llmperf_ranks('2')": "a number of ranks of at least 1 is needed",
    "llmperf_ranks(2, gpus=2)": "is not known",
    "llmperf_ranks(2, timeout=-1)": "a number of seconds above 0 is needed",
    "llmperf_isolated(3)": "takes nothing but timeout",
}


def test_arguments_that_cannot_be_used_are_their_tests_errors(body):
    tests = [f"@pytest.mark.{mark}\ndef test_{i}():\n    pass\n" for i, mark in enumerate(MARKS)]
    tests += ["def test_other(llmperf_rank):\n    pass\n", "def test_plain():\n    pass\n"]
    result = body("\n".join(tests))
    result.assert_outcomes(passed=1, errors=len(MARKS) + 1)
    for says in {*MARKS.values(), "this test has no ranks"}:
        assert says in said(result)
