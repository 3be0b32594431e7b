"""--llmperf-gate: a run is held against accepted sessions, in the test that made it.

Scripted engine; copied sessions.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from support.stored_sessions import ONE, TWO, on_another_cpu, rewritten, with_goodput, with_metric

from pytest_llmperf.history import accept
from pytest_llmperf.plugin.gate_watch import EXIT_JUDGED_NOTHING

SLOW_ONCE = """
from msgspec.structs import replace
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.session.session import LlmperfSession

@pytest.fixture(autouse=True)
def the_first_worker_is_slow(monkeypatch):
    sample, speeds = LlmperfSession._sample, iter(
        ["ttft=70ms,tpot=14ms", *["ttft=50ms,tpot=10ms"] * 3]
    )

    def of_this_worker(session, models, workload, processes):
        for model in models:
            model.plan = replace(model.plan, model=model_ref(f"scripted:{next(speeds)}"))
        return sample(session, models, workload, processes)

    monkeypatch.setattr(LlmperfSession, "_sample", of_this_worker)
"""


def test_the_test_that_regressed_fails_with_its_size_and_the_others_pass(
    project, run_both, sessions
):
    """Ten sessions, then one test of two 15 % slower: that one fails.

    Two lines name metric, size, accepted sessions and limit.
    """
    sessions(11)
    project(
        TWO.replace(
            "def test_speed",
            "@pytest.mark.llmperf(model='scripted:ttft=57.5ms,tpot=11.5ms')\ndef test_speed",
        )
    )
    result = run_both("--llmperf-gate")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*def test_speed*",
            (
                "E *Regression: throughput of auto is 63.8 tok/s, 13.* % less than in 11 accepted "
                "sessions, *(measured again 3 times: 13.* % less)"
            ),
        ],
    )
    result.stdout.fnmatch_lines(
        ["E*decode*on*; accepted 73.* tok/s, spread 0.*%; smallest visible change *; p = *"]
    )
    result.stdout.fnmatch_lines(["FAILED *test_speed* - Regression: throughput of auto is*"])
    result.stdout.no_fnmatch_line("*gate/gate.py*")
    assert result.ret == 1


def test_an_unchanged_session_passes(project, run, sessions):
    """The same code again: judged, PASS, no warning, exit code 0."""
    project(TWO)
    sessions(10)
    result = run("--llmperf-gate")
    result.assert_outcomes(passed=2, warnings=0)
    assert result.ret == 0


@pytest.mark.parametrize("slower", [0.98, 1.01, 1.025])
def test_noise_does_not_fail(project, run, sessions, slower):
    """A session within what sessions differ by (1.5 %)."""
    sessions(12, spread=0.015)
    project(ONE, script=f"ttft={50 * slower}ms,tpot={10 * slower}ms")
    result = run("--llmperf-gate=throughput")
    result.assert_outcomes(passed=1)
    assert result.ret == 0


def test_a_single_slow_measurement_is_not_seen_again_and_passes_with_a_note(
    project, run, sessions, lines
):
    """The first worker is slow for all its repetitions, the three fresh ones are not.

    All four are stored.
    """
    sessions(10)
    project(SLOW_ONCE + ONE)
    result = run("--llmperf-gate", "--llmperf-json=out.jsonl")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*not seen again in fresh runs:*"])
    assert [record["extra"].get("attempt", 1) for record in lines()] == [1, 2, 3, 4]


@pytest.mark.own_process
def test_a_new_test_is_not_comparable_and_alone_is_exit_code_six(project, run_both):
    """Nothing compared is never a pass: the test passes with a warning, the session does not."""
    project(ONE)
    result = run_both("--llmperf-gate")
    result.assert_outcomes(passed=1, warnings=3)
    result.stdout.fnmatch_lines(
        [
            (
                "*not comparable: throughput of auto is *not compared with history: "
                "there is no earlier session of this test*"
            )
        ],
    )
    result.stdout.fnmatch_lines(["*judged nothing*"])
    assert result.ret == EXIT_JUDGED_NOTHING


def test_accepted_sessions_can_be_required(project, run):
    """--llmperf-require-accepted makes it a failure of the test."""
    project(ONE)
    run("--llmperf-gate", "--llmperf-require-accepted").assert_outcomes(failed=1)


@pytest.mark.own_process
def test_a_renamed_test_is_named_as_new(project, run, sessions):
    """Its history stays with the old name; the session says that nothing was compared for it."""
    sessions(10)
    project(TWO.replace("test_speed", "test_velocity"))
    result = run("--llmperf-gate")
    result.assert_outcomes(passed=2, warnings=3)
    result.stdout.fnmatch_lines(
        ["*test_velocity*", "*not comparable: *no earlier session of this test*"]
    )


@pytest.mark.own_process
def test_another_environment_is_named_by_the_fact_that_differs(project, run, opened):
    """The same series on another CPU."""
    project(ONE)
    run()
    rewritten(opened, on_another_cpu)
    result = run("--llmperf-gate")
    result.assert_outcomes(passed=1, warnings=3)
    result.stdout.fnmatch_lines(["*another environment: cpu_model is *, was 'Another CPU'*"])
    assert result.ret == EXIT_JUDGED_NOTHING


def test_another_workload_is_named(project, run, sessions):
    """The same test with more tokens."""
    sessions(10)
    project(ONE.replace("WORK", "Decode(batch=1, prompt_tokens=8, new_tokens=12)"))
    run("--llmperf-gate").stdout.fnmatch_lines(
        ["*another measurement: workload_text is 'decode*', was 'decode*'*"]
    )


@pytest.mark.own_process
def test_a_metric_that_is_not_reported_any_more_is_not_green(project, run, sessions):
    """Earlier sessions had a goodput, this one has none: an outcome, which says how many had it."""
    sessions(10, change=with_goodput)
    project(ONE)
    result = run("--llmperf-gate=goodput")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*goodput of auto could not be measured*10 sessions had it*"])
    assert result.ret == EXIT_JUDGED_NOTHING


def test_few_sessions_are_undecided(project, run, sessions):
    """Three: 5 % more time is recorded, reported, and passes with a warning; strict, it fails.

    30 % is past any doubt.
    """
    sessions(3)
    project(ONE, script="ttft=52.5ms,tpot=10.5ms")
    result = run("--llmperf-gate=throughput", "--llmperf-store=sqlite:///.llmperf/history.db")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*undecided: throughput of *"])
    said = " ".join(" ".join(result.outlines).split())
    assert said.count("8 sessions are needed, 3 are there") == 1, "in one place"
    assert result.ret == 0
    run("--llmperf-gate=throughput", "--llmperf-strict").assert_outcomes(failed=1)
    project(ONE, script="ttft=75ms,tpot=15ms")
    run("--llmperf-gate=throughput").assert_outcomes(failed=1)


def test_the_marker_sets_a_limit_of_its_own(project, run, sessions):
    """25 % are let through here: 15 % passes; without the marker it fails."""
    project(ONE)
    sessions(10)
    slow = "ttft=57.5ms,tpot=11.5ms"
    project(ONE, script=slow)
    run("--llmperf-gate").assert_outcomes(failed=1)
    project("@pytest.mark.llmperf(gate={'throughput': 0.25, 'ttft.p50': 0.25})" + ONE, script=slow)
    run("--llmperf-gate").assert_outcomes(passed=1)


def test_a_failed_session_is_not_held_against_until_it_is_accepted(
    project, run, sessions, opened, pytester
):
    """It fails again and again.

    After a reviewed line that accepts its record, the new level passes and the spread is kept.
    """
    sessions(10)
    project(ONE, script="ttft=57.5ms,tpot=11.5ms")
    for _ in range(2):
        result = run("--llmperf-gate")
        result.assert_outcomes(failed=1)
    key = re.search(r"llmperf accept ([0-9a-f]{16})", " ".join(result.stdout.str().split()))[1]
    command = [
        sys.executable,
        "-m",
        "pytest_llmperf",
        "accept",
        key,
        "--reason",
        "wanted",
        "--who",
        "me",
    ]
    subprocess.run(command, cwd=pytester.path, check=True, capture_output=True)
    result = run("--llmperf-gate")
    result.assert_outcomes(passed=1, warnings=0)
    project(ONE, script="ttft=66ms,tpot=13.2ms")
    run("--llmperf-gate").assert_outcomes(failed=1)


def test_a_suspicion_that_nobody_resolves_is_not_forgotten(project, run, sessions, opened):
    """3.5 % more time where sessions differ by 2 %: undecided, and it never becomes the level.

    The next line names it, and how to accept it; once somebody does, nothing is held back.
    """
    sessions(12, spread=0.02)
    slower = "ttft=52ms,tpot=10.4ms"
    project(ONE, script=slower)
    run("--llmperf-gate=throughput", "--llmperf-again-budget=0.000001").assert_outcomes(passed=1)
    result = run("--llmperf-gate=throughput", "--llmperf-again-budget=0.000001")
    result.assert_outcomes(passed=1, warnings=1)
    line = " ".join(result.stdout.str().split())
    record = re.search(r"1 session is held back since (\w{8}) .* was worse than the limit", line)[1]
    assert "in 12 accepted sessions" in line
    command = [sys.executable, "-m", "pytest_llmperf", "accept", "--include", record]
    subprocess.run([*command, "--reason", "a busy day"], check=True, capture_output=True)
    result = run("--llmperf-gate=throughput", "--llmperf-again-budget=0.000001")
    assert "in 13 accepted sessions" in " ".join(result.stdout.str().split())


@pytest.mark.nightly
@pytest.mark.own_process
def test_sessions_of_uncommitted_changes_are_asked_for(project, run, pytester):
    """They are nothing to hold against, unless an option or its ini twin says so."""
    project(ONE)
    for words in (
        ("init", "-q", "-b", "main"),
        ("add", "test_it.py"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"),
    ):
        subprocess.run(["git", *words], cwd=pytester.path, check=True)
    project(ONE + "# changed")
    run()
    result = run("--llmperf-gate=throughput")
    result.stdout.fnmatch_lines(
        ["*not compared with history: 1 session with uncommitted changes is left out (*"]
    )
    assert result.ret == EXIT_JUDGED_NOTHING
    assert run("--llmperf-gate=throughput", "--llmperf-any-tree").ret == 0
    pytester.makeini("[pytest]\nllmperf_any_tree = true\n")
    assert run("--llmperf-gate=throughput").ret == 0


def test_more_weights_fail_on_the_first_comparison(project, run, opened):
    """Bytes are counted: one session is enough, and 2 % is past the 1 % allowed.

    The model's content is the same by its hash.
    """
    project(ONE)
    run()
    rewritten(opened, lambda record: with_metric(record, "memory.weights", 1 / 1.02))
    result = run("--llmperf-gate=memory.weights:1%")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            (
                "*memory.weights of auto is 100 MB, 2.00 % more than in 1 accepted session, "
                "allowed 1.0 % worse*"
            )
        ],
    )


def test_an_interleaved_comparison_is_gated_on_both_sides(project, run, sessions):
    """compare() records two sides, each with its own series."""
    body = "\ndef test_pays(llm_bf16, baseline):\n    llm_bf16.compare(baseline, WORK)\n"
    project(body)
    run()
    sessions(10)
    project(body, script="ttft=50ms,tpot=10ms,bf16/tpot=14ms")
    result = run("--llmperf-gate")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*throughput of bf16 is *less than in * accepted session*"])
    result.stdout.no_fnmatch_line("E*throughput of fp32*")


def test_the_ini_file_gates_too(project, run, sessions, pytester):
    """`llmperf_gate = throughput:50%`, and the command line wins over it."""
    project(ONE)
    sessions(10)
    pytester.makeini("[pytest]\nllmperf_gate = throughput:50%\n")
    project(ONE, script="ttft=57.5ms,tpot=11.5ms")
    run("--llmperf-gate=throughput:5%").assert_outcomes(failed=1)
    run().assert_outcomes(passed=1)
    assert run("--llmperf-gate=off").ret == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("thruput:5%", "*thruput*Did you mean 'throughput'*"),
        ("throughput:5", "*limit of throughput is 5.0*5%*"),
        ("throughput:much", "*no limit that is a number*"),
        ("tests/", "*'tests/' is a path*"),
    ],
)
def test_a_gate_that_cannot_be_read_stops_the_session(project, run, value, message):
    """A misspelt metric gates nothing, and a limit of 500 % neither.

    A path that the option swallowed is neither.
    """
    project(ONE)
    result = run("--llmperf-gate", value)
    assert result.ret == 4
    result.stderr.fnmatch_lines([message])


def test_a_marker_that_cannot_be_read_is_that_tests_error(project, run):
    """Also where nothing is gated."""
    project("@pytest.mark.llmperf(gate={'thruput': 0.05})" + ONE)
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*thruput*Did you mean 'throughput'*"])


def test_a_value_of_zero_is_left_out_by_name(project, run, opened, sessions):
    """Nothing is relative to zero: the other sessions are held against, and the line names it."""
    project(ONE)
    run()
    rewritten(opened, lambda record: with_metric(record, "throughput", 0.0))
    sessions(10)
    result = run("--llmperf-gate=throughput", "-rA")
    result.assert_outcomes(passed=1)
    project(ONE, script="ttft=57.5ms,tpot=11.5ms")
    result = run("--llmperf-gate=throughput")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*1 session with a value of 0 tok/s is left out (*"])


def test_a_damaged_line_of_accepted_changes_is_an_error_that_names_it(project, run, pytester):
    """A reviewed file, and a merge conflict in it."""
    project(ONE)
    (pytester.path / accept.FILE).write_text(json.dumps({"series": "x"}) + "\n<<<<<<< HEAD\n")
    result = run("--llmperf-gate")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*llmperf-accepted.jsonl, line 1 is not an accepted change*"])


def test_without_any_llmperf_test_a_gated_session_is_not_green(pytester, run):
    """A typo in the marker would gate nothing for ever."""
    pytester.makepyfile(test_plain="def test_it(): pass")
    result = run("--llmperf-gate")
    assert result.ret == EXIT_JUDGED_NOTHING
    assert run().ret == 0
    assert run("--llmperf-gate", "--collect-only").ret == 0


def test_a_disabled_session_judges_nothing_and_says_so(project, run, sessions):
    """--llmperf-disable measures nothing."""
    project(ONE)
    sessions(10)
    assert run("--llmperf-gate", "--llmperf-disable").ret == EXIT_JUDGED_NOTHING
