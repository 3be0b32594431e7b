"""Other programs beside a measurement: refused within seconds, or allowed and marked."""

from __future__ import annotations

import pytest
from support.stored_sessions import ONE

LOADED = "ttft=50ms,tpot=10ms,mark=foreign-load"
CLAIMS = """
def test_limit(llm):
    assert llm.run(Decode(batch=1, prompt_tokens=8, new_tokens=8)).throughput >= 1000

def test_kept(llm):
    assert llm.run(Decode(batch=1, prompt_tokens=8, new_tokens=8)).throughput >= 1

def test_compared(llm, llm_factory):
    fast, slow = llm.compare(llm_factory("bf16"), Decode(batch=1, prompt_tokens=8, new_tokens=8))
    assert fast.throughput >= 2 * slow.throughput
"""


def test_steady_load_makes_a_run_invalid_and_names_the_option(project, run):
    project(ONE, script=LOADED)
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*other programs worked beside every repetition for 8.* s*"])
    result.stdout.fnmatch_lines(["*--llmperf-allow-load*"])
    result.stdout.no_fnmatch_line("*larger --llmperf-budget*")


@pytest.mark.parametrize("way", ["option", "ini"])
def test_with_the_option_it_is_measured_and_marked(project, run, pytester, lines, way):
    project(ONE, script=LOADED)
    if way == "ini":
        pytester.makeini("[pytest]\nllmperf_allow_load = yes")
    result = run("--llmperf-json=out.jsonl", *(["--llmperf-allow-load"] if way == "option" else []))
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*MARKED*"])
    result.stdout.fnmatch_lines(["*was measured beside other programs*"])
    (record,) = lines()
    assert record["outcome"] == "MARKED"
    assert record["extra"]["under_load"]["repetitions"] > 0


def test_without_load_the_option_changes_nothing(project, run, lines):
    project(ONE)
    run("--llmperf-allow-load", "--llmperf-json=out.jsonl").assert_outcomes(passed=1)
    (record,) = lines()
    assert record["outcome"] == "RECORDED"
    assert "under_load" not in record["extra"]


def test_what_load_can_be_the_reason_of_is_undecided_and_the_rest_is_decided(project, run):
    """A missed limit may be load's fault, one that is kept is kept, and pairs share the load."""
    project(CLAIMS, script=f"{LOADED},bf16/tpot=40ms")
    result = run("--llmperf-allow-load", "--llmperf-strategy=fp32")
    result.assert_outcomes(passed=3, warnings=1)
    said = " ".join(" ".join(result.outlines).split())
    assert "undecided: other programs worked beside it" in said
    assert run("--llmperf-allow-load", "--llmperf-strategy=fp32", "--llmperf-strict").ret == 1


def test_a_comparison_in_turn_still_fails_beside_load(project, run):
    project(CLAIMS, script=f"{LOADED},bf16/tpot=11ms")
    result = run("--llmperf-allow-load", "--llmperf-strategy=fp32", "-k", "compared")
    result.assert_outcomes(failed=1)


def test_marked_runs_are_no_baseline_and_are_not_gated(project, run):
    """Ten marked sessions are held against nothing; a quiet one is not held against them."""
    project(ONE, script=LOADED)
    for _ in range(3):
        run("--llmperf-allow-load")
    result = run("--llmperf-allow-load", "--llmperf-gate")
    result.assert_outcomes(passed=1, warnings=3)
    result.stdout.fnmatch_lines(["*measured beside other programs (--llmperf-allow-load)*"])
    project(ONE)
    result = run("--llmperf-gate", "--llmperf-require-accepted")
    result.assert_outcomes(failed=1)


def test_cpu_time_can_be_claimed_and_gated(project, run, lines):
    project(
        """
def test_cpu_time(llm):
    assert llm.run(Decode(batch=1, prompt_tokens=8, new_tokens=8)).cpu_time_per_token <= 0.01
""",
        script="ttft=50ms,tpot=10ms,cpu=8ms",
    )
    result = run("--llmperf-gate=cpu_time_per_token:3%", "--llmperf-json=out.jsonl")
    result.assert_outcomes(passed=1, warnings=1)
    (record,) = lines()
    (metric,) = [metric for metric in record["metrics"] if metric["name"] == "cpu_time_per_token"]
    assert metric["value"] == pytest.approx(0.008)
    assert (metric["unit"], metric["formula"]) == ("s", "cpu_time_per_token/1")


def test_cpu_time_that_got_worse_fails_at_the_same_speed(project, run):
    project(ONE, script="ttft=50ms,tpot=10ms,cpu=8ms")
    for _ in range(8):
        run()
    project(ONE, script="ttft=50ms,tpot=10ms,cpu=9ms")
    result = run("--llmperf-gate=cpu_time_per_token:3%,throughput:3%")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Regression: cpu_time_per_token of auto is 9* ms, 12.5 % more*"])


def test_cpu_time_that_cannot_be_read_is_an_error_with_the_reason(project, run):
    project(
        """
def test_cpu_time(llm):
    assert llm.run(Decode(batch=1, prompt_tokens=8, new_tokens=8)).cpu_time_per_token <= 0.01
""",
        script="cpu=none",
    )
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*cpu_time_per_token could not be measured: *cpu=none*"])


@pytest.mark.nightly
@pytest.mark.own_process
@pytest.mark.parametrize("others", [0.5, 0.55])
def test_side_by_side_needs_no_option_where_load_hits_both_versions_alike(repo, run, others):
    """The base shares half of its cores: no pair is thrown away."""
    repo.speed("10ms,others=0.5")
    repo.commit("loaded")
    repo.speed(f"10ms,others={others}")
    result = run("--llmperf-against=HEAD")
    result.assert_outcomes(passed=1)
    assert "throughput of auto is 1.00x HEAD" in " ".join(result.stdout.str().split())


@pytest.mark.own_process
def test_side_by_side_load_that_hits_one_version_alone_decides_nothing(repo, run):
    repo.speed("10ms,others=0.1")
    repo.commit("quiet")
    repo.speed("10ms,others=0.55")
    result = run("--llmperf-against=HEAD")
    result.assert_outcomes(errors=1)
    assert "used 10% of the cores beside the base, 55% beside the new" in " ".join(
        result.stdout.str().split()
    )
