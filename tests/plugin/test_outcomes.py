"""Warnings as errors, marks that skip or expect failure, and strategies that are no texts.

Records that cannot be stored, too.
"""

from __future__ import annotations

import pytest

CLOSE = """
def test_close(llm):
    assert llm.run(WORK).tpot.p50 <= 9.9 * ms

def test_clear(llm):
    assert llm.run(WORK).tpot.p50 <= 50 * ms
"""


def test_warnings_as_errors_fail_the_undecided_test_alone(project, run_both):
    """-W error is common in ini files: the session goes on."""
    project(CLOSE)
    result = run_both("-W", "error::pytest.PytestWarning")
    result.assert_outcomes(failed=1, passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_a_skip_mark_comes_before_what_is_wrong_with_the_declaration(project, run_both):
    """A test for another device is skipped where that is not; without the mark it is an error."""
    project("""
@pytest.mark.skipif(True, reason="not here")
@pytest.mark.llmperf(device="tpu")
def test_elsewhere(llm): pass

@pytest.mark.llmperf(device="tpu")
def test_wrong(llm): pass
""")
    run_both().assert_outcomes(skipped=1, errors=1)
    run_both("--llmperf-skip").assert_outcomes(skipped=2)


def test_an_expected_failure_may_be_an_error(project, run_both):
    """xfail without raises= expects any exception; counts and exit code do not say otherwise."""
    project("""
@pytest.mark.xfail(reason="units")
def test_units(llm):
    run = llm.run(WORK)
    assert run.ttft.p50 <= run.memory.weights
""")
    result = run_both()
    result.assert_outcomes(xfailed=1)
    assert result.ret == 0


def test_a_json_file_that_cannot_be_written_is_an_error_of_the_test(project, run_both, pytester):
    """A folder has that name; the plain test beside it still runs."""
    project("def test_speed(llm):\n    llm.run(WORK)\n")
    pytester.makepyfile(test_plain="def test_plain(): pass")
    pytester.mkdir("taken")
    result = run_both("--llmperf-json=taken")
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["*StoreError: JSON lines file*taken cannot be written*"])


def test_an_outcome_that_cannot_be_kept_is_an_error_of_the_test(project, run, pytester):
    """The file becomes unwritable after the record was made, before the outcome is."""
    project("""
import os

def test_speed(llm):
    assert llm.run(WORK).tpot.p50 <= 50 * ms
    descriptors = os.listdir("/proc/self/fd")
    opened = {os.path.realpath(f"/proc/self/fd/{fd}"): int(fd) for fd in descriptors}
    os.dup2(os.open("out.jsonl", os.O_RDONLY), opened[os.path.realpath("out.jsonl")])

def test_plain():
    pass
""")
    result = run("--llmperf-json=out.jsonl")
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    result.stdout.fnmatch_lines(["*llmperf: JSON lines file*out.jsonl cannot be written: *"])
    assert result.ret != pytest.ExitCode.OK


@pytest.mark.parametrize(
    "wrong",
    ["baseline, batch=0", "baseline, new_tokens=1.5", "baseline, prompts='short-chat'", "'fp32'"],
)
def test_a_question_that_cannot_be_asked_is_an_error_that_names_it(project, run, wrong):
    """It never reaches the worker, which would crash."""
    project(f"def test_answers(llm, baseline):\n    assert llm.agreement({wrong}).ok\n")
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E*UsageError: agreement(*needed*"])


@pytest.mark.parametrize(
    "strategies", ["['bf16', 3]", "['bf16', pytest.param('fp16', id='half')]", "[]"]
)
def test_strategies_that_are_no_texts_are_an_error(project, run_both, strategies):
    """They must not run under the default strategy instead."""
    project(
        f"@pytest.mark.llmperf(strategies={strategies})\ndef test_speed(llm):\n    llm.run(WORK)\n"
    )
    result = run_both()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*UsageError*strategies=*at least one strategy is needed*"])


def test_the_plan_is_printed_under_xdist(project, run_both):
    """The same rows with and without -n 2, and the same exit code."""
    project(CLOSE)
    result = run_both("--llmperf-plan")
    result.stdout.fnmatch_lines(["*test_close*", "*2 tests would run*"])
    assert result.ret == 0


def test_estimates_can_be_printed_and_an_agreement_is_no_claim(project, run):
    """Formats and rounding work on the value.

    `assert llm.agreement(…)` would hold whatever it found.
    """
    project("""
def test_prints(llm):
    rate = llm.run(WORK).throughput
    assert float(f"{rate:.1f}") == round(float(rate), 1) == round(rate, 1)
    assert int(rate) == int(float(rate))
    assert f"{rate}" == str(rate)

def test_truth(llm, baseline):
    assert llm.agreement(baseline, prompts=PromptSet.synthetic(1))
""")
    result = run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*UsageError*neither true nor false*"])


def test_the_hint_for_an_option_is_of_its_own_size(project, run):
    """20 % is no useful precision, and a name that is too long for a file is no crash."""
    project("def test_speed(llm): pass")
    result = run("--llmperf-precision=0")
    result.stderr.fnmatch_lines(["*for example --llmperf-precision=1.*"])
    result = run(f"--llmperf-python=scripted={'x' * 300}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*ENGINE=PATH with an existing interpreter*"])


@pytest.mark.parametrize(
    "use", ["assert not rate > 9.95 * ms", "if rate > 9.95 * ms:\n        pytest.fail('slow')"]
)
def test_an_undecided_claim_fails_under_strict_however_it_is_used(project, run_both, use):
    """Strict makes an undecided claim false, and `not` would make a pass of that."""
    project(
        f"def test_close(llm):\n    rate = llm.run(WORK).tpot.p50\n    {use}\n",
        script="ttft=50ms,tpot=10ms,noise=0.01",
    )
    result = run_both("--llmperf-strict")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*undecided*--llmperf-strict is on*"])


def test_what_a_fixture_measures_at_its_end_is_recorded_with_an_outcome(project, run_both, lines):
    """Records made in the teardown of a test that passed."""
    project("""
@pytest.fixture
def late(llm):
    yield
    llm.run(WORK)

def test_speed(late):
    pass
""")
    result = run_both("--llmperf-json=out.jsonl")
    result.assert_outcomes(passed=1)
    assert [row["outcome"] for row in lines()] == ["RECORDED"]


EXPECTED = """
@pytest.mark.xfail(reason="the old driver")
def test_fails_as_expected(llm):
    assert llm.run(WORK).tpot.p50 <= 1 * ms

@pytest.mark.xfail(strict=False, reason="the old driver")
def test_passes_all_the_same(llm):
    assert llm.run(WORK).tpot.p50 <= 50 * ms

@pytest.mark.xfail(strict=True, reason="the old driver")
def test_must_fail(llm):
    assert llm.run(WORK).tpot.p50 <= 50 * ms

@pytest.mark.skip(reason="not today")
def test_skipped(llm):
    llm.run(WORK)
"""


def test_expected_failures_have_outcomes_of_their_own(project, run_both, lines):
    """XFAIL and XPASS in the table and by their reasons.

    A strict one that passes has failed, and a skip is a skip.
    """
    project(EXPECTED)
    result = run_both("--llmperf-json=out.jsonl")
    result.assert_outcomes(xfailed=1, xpassed=1, failed=1, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "*fails_as_expected*XFAIL",
            "*passes_all_the_same*XPASS",
            "*must_fail*FAIL",
            "SKIPPED *test_skipped: not today",
            "XFAIL *test_fails_as_expected: the old driver",
            "XPASS *test_passes_all_the_same: the old driver",
        ],
    )
    assert sorted(row["outcome"] for row in lines()) == ["FAIL", "XFAIL", "XPASS"]
    assert run_both("-q").stdout.str().count("1 XFAIL") == 1


@pytest.mark.parametrize(
    "bare", ["llm.run(WORK).throughput", "not llm.run(WORK).throughput", "llm.run(WORK).ttft"]
)
def test_an_assert_without_a_comparison_is_an_error(project, run, bare):
    """It would hold whatever was measured; the message says how to compare it."""
    project(f"def test_truth(llm):\n    assert {bare}\n")
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E*UsageError: *ompare*"])
