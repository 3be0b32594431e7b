"""What asserts on estimates do: failures of two lines, warnings and errors.

UNDECIDED is a warning, NotMeasurable an error.
"""

from __future__ import annotations

import pytest


@pytest.mark.by_day_with_xdist
def test_a_claim_that_the_data_contradict_fails_with_two_lines(project, run_both):
    """bf16 is exactly as fast as fp32 here, and 1.2 times was claimed."""
    project(
        """
@pytest.mark.parametrize("llm", ["bf16"], indirect=True)
def test_pays(llm, baseline):
    ours, ref = llm.compare(baseline, WORK)
    assert ours.throughput >= 1.2 * ref.throughput
""",
        script="ttft=50ms,tpot=10ms,noise=0.01",
    )
    result = run_both()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E*throughput of bf16 is *x fp32*claimed >= 1.20x*", "E*decode b1 p8 n11 on*"]
    )


def test_a_true_claim_passes(project, run):
    """bf16 is twice as fast in this script."""
    project(
        """
@pytest.mark.parametrize("llm", ["bf16"], indirect=True)
def test_pays(llm, baseline):
    ours, ref = llm.compare(baseline, WORK)
    assert ours.throughput >= 1.2 * ref.throughput
    assert ours.memory.weights <= 0.55 * ref.memory.weights
""",
        script="ttft=50ms,tpot=10ms,bf16/tpot=5ms,bf16/ttft=25ms,noise=0.01",
    )
    run().assert_outcomes(passed=1)


def test_a_pair_is_shown_with_the_interval_of_its_ratio(project, run_both, monkeypatch):
    """In the sentence on who is fastest: what was measured in turn is not said to be otherwise."""
    monkeypatch.setenv("COLUMNS", "200")
    project(
        """
def test_both(llm_factory):
    work = Batch(requests=6, prompt_tokens=8, max_new_tokens=(2, 12), batch=3)
    llm_factory("fp32+continuous").compare(llm_factory("fp32"), work)
""",
        script="ttft=50ms,tpot=10ms,noise=0.01",
    )
    result = run_both()
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines(
        [r"fastest at .*: scripted fp32\+continuous .* 1\.\d+x \[1\.\d+, 1\.\d+\] scripted fp32 .*"]
    )
    result.stdout.no_fnmatch_line("*not in turn*")


def test_the_record_of_a_run_says_what_the_run_used(project, run, lines):
    """Cache, graphs and batching show in runs alone, and are recorded as warm-up left them."""
    project(
        """
def test_each(llm_factory):
    llm_factory("fp32+static-cache+compile").run(WORK)
    work = Batch(requests=4, prompt_tokens=8, max_new_tokens=4, batch=2)
    llm_factory("fp32+continuous").run(work)
""",
    )
    run("--llmperf-json=out.jsonl").assert_outcomes(passed=1)
    compiled, continuous = (row["effective"] for row in lines())
    assert (compiled["cache"], compiled["compiled_graphs"], compiled["batching"]) == (
        "StaticCache",
        1,
        "static",
    )
    assert continuous["batching"] == "continuous"


UNDECIDED = """
def test_close(llm):
    run = llm.run(WORK)
    assert run.tpot.p50 <= 9.9 * ms
"""


def test_an_undecided_claim_passes_with_a_warning(project, run_both):
    """1 % over the limit is inside the practical floor of 3 %."""
    project(UNDECIDED)
    result = run_both()
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*undecided*"])


def test_an_undecided_claim_fails_under_strict(project, run_both):
    """--llmperf-strict takes nothing on trust."""
    project(UNDECIDED)
    run_both("--llmperf-strict").assert_outcomes(failed=1)


def test_a_metric_that_goes_missing_is_an_error_not_a_pass(project, run_both):
    """This machine has no energy counter."""
    project(
        """
def test_energy(llm):
    assert llm.run(WORK).energy.per_token <= 1.0
""",
        script="tpot=10ms,power=none",
    )
    result = run_both()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E*NotMeasured:*energy*"])


def test_a_limit_in_another_unit_is_an_error(project, run):
    """Seconds are not bytes."""
    project("""
def test_units(llm):
    run = llm.run(WORK)
    assert run.ttft.p50 <= run.memory.weights
""")
    run().assert_outcomes(errors=1)
