"""What a verdict takes is said in each line and predicted; where none can come, it is given up."""

from __future__ import annotations

import json

from msgspec import structs
from support.stored_sessions import ONE, rewritten

from pytest_llmperf.history.store import open_store

CLOSE = """
def test_close(llm):
    assert llm.run(Decode(batch=1, prompt_tokens=8, new_tokens=8)).throughput >= 60
"""
NOISY = "ttft=50ms,tpot=10ms,noise=1.2"


def test_each_line_says_what_its_measurement_took(project, run, lines):
    project(ONE)
    result = run("--llmperf-json=out.jsonl")
    result.stdout.re_match_lines([r"test .* took  verdict", r".* <1 s  recorded"])
    (record,) = lines()
    assert 0 < record["extra"]["took_s"] < 60


def test_an_undecided_claim_says_what_its_test_took(project, run):
    project(CLOSE, script="ttft=50ms,tpot=10ms,noise=0.3")
    result = run("--llmperf-budget=2")
    result.stdout.re_match_lines([r"UNDECIDED .*test_close, <1 s"])


def test_the_plan_predicts_a_test_that_never_ran_from_loads_of_others(project, run, pytester):
    """The model took 8 s to load in another test; warm-up 10 s, budget 20 s, readings 3 s."""
    project(ONE, script="load=8s")
    run()
    project(ONE.replace("test_speed", "test_new"), script="load=8s")
    result = run("--llmperf-plan", "--llmperf-plan-json=plan.json")
    result.stdout.re_match_lines([r"test_new .* 20 s .*≤ 41 s"])
    (test,) = json.loads((pytester.path / "plan.json").read_text())["tests"]
    assert (test["load_s"], test["predicted_s"], test["expected_s"]) == (8.0, 41.0, None)


def test_the_plan_predicts_pairs_and_compilation(project, run, pytester):
    """Two runs of a test, each of which is compared: twice both looks, and what they end in.

    The model took 8 s to load, and compiled for 30 s before its first repetition: 38 s until a
    process is warm. A pair is two processes that sample for as long as they take to start.
    """
    project(
        ONE.replace("    llm.run(WORK)", "    llm.run(WORK)\n    llm.run(WORK)"), script="load=8s"
    )
    run()
    rewritten(
        lambda: open_store("sqlite:///.llmperf/history.db", folder=pytester.path),
        lambda record: structs.replace(record, warm_up={**record.warm_up, "untimed_s": 30.0}),
    )
    pytester.mkdir("before")
    options = ("--llmperf-against=before", "--llmperf-against-budget=100")
    result = run("--llmperf-plan", "--llmperf-plan-json=plan.json", *options)
    assert result.ret == 0
    (test,) = json.loads((pytester.path / "plan.json").read_text())["tests"]
    assert (test["load_s"], test["predicted_s"]) == (38.0, 38 + 10 + 20 + 3)
    assert test["pairs_s"] == 2 * (38 + 2 * 100 + 2 * (38 + 38))


def test_the_plan_of_a_model_that_was_never_loaded_predicts_nothing(project, run, pytester):
    project(ONE)
    result = run("--llmperf-plan", "--llmperf-plan-json=plan.json")
    (test,) = json.loads((pytester.path / "plan.json").read_text())["tests"]
    assert test["predicted_s"] is None
    assert result.ret == 0


def test_a_claim_that_cannot_be_decided_is_given_up_on_its_second_session(project, run, lines):
    """Repetitions differ by a factor of 3, and the claim was within a few per cent of its bound.

    The first session knows of no claim, and uses its budget.
    """
    project(CLOSE, script=NOISY)
    run("--llmperf-budget=20")
    result = run("--llmperf-budget=20", "--llmperf-json=out.jsonl")
    result.stdout.fnmatch_lines(["*given up after *of 20 s: at this noise*"])
    (record,) = lines()
    assert record["extra"]["given_up"].startswith("given up after")
    assert record["outcome"] == "UNDECIDED"
    assert record["extra"]["valid"] >= 10


def test_a_clear_claim_on_the_same_machine_is_not_given_up(project, run, lines):
    project(CLOSE.replace("60", "1"), script=NOISY)
    run("--llmperf-budget=20")
    run("--llmperf-budget=20", "--llmperf-json=out.jsonl").assert_outcomes(passed=1)
    (record,) = lines()
    assert "given_up" not in record["extra"]
