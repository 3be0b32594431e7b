"""Repetitions spread over fresh processes: scripted ones, each with a factor of its own."""

from __future__ import annotations

import msgspec
import pytest
from support.stored_sessions import earlier

COMPARED = """
@pytest.mark.parametrize("llm", ["bf16"], indirect=True)
def test_no_slower(llm, baseline):
    ours, ref = llm.compare(baseline, WORK{arguments})
    assert ours.throughput >= 0.99 * ref.throughput
"""
"""Both are equally fast in every script here, so the claim is true by 1 %."""

RUN = """
def test_run(llm):
    run = llm.run(WORK{arguments})
    assert run.throughput >= {limit}
"""
DIFFERENT = "ttft=50ms,tpot=10ms,noise=0.002,process=0.02,seed=4"
"""Processes that differ by 2 %: throughput is 73.3 tok/s on average."""


def test_one_process_would_pass_what_several_cannot_decide(project, run, lines):
    """The repetitions of the first processes alone put bf16 clearly past the bound."""
    project(COMPARED.format(arguments=""), script=DIFFERENT)
    result = run("--llmperf-json=out.jsonl")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*claimed >= 0.990x*(* pairs, interleaved, * processes, * apart)*", "*undecided*"]
    )
    ours, ref = lines()
    assert ours["processes"]["sizes"] == ref["processes"]["sizes"]
    assert ours["processes"]["count"] >= 3
    assert 0.006 < ours["processes"]["between"] < 0.06
    assert 0.001 < ours["processes"]["within"] < 0.004
    size = ours["processes"]["sizes"][0]
    pairs = zip(ours["samples"]["throughput"], ref["samples"]["throughput"], strict=True)
    assert min([a / b for a, b in pairs][:size]) > 1.0


def test_without_a_process_effect_the_same_claim_passes(project, run, lines):
    """The negative control of the test above: repetitions differ as much, processes do not."""
    project(COMPARED.format(arguments=""), script=DIFFERENT.replace("process=0.02,", ""))
    run("--llmperf-json=out.jsonl").assert_outcomes(passed=1, warnings=0)
    assert all(row["processes"]["count"] == 1 for row in lines())


@pytest.mark.parametrize("strict", [False, True])
def test_a_claim_near_its_bound_is_not_decided_by_one_process(project, run, lines, strict):
    """The line says why, and what would decide it."""
    project(COMPARED.format(arguments=", processes=1"), script=DIFFERENT)
    options = ["--llmperf-strict"] if strict else []
    result = run("--llmperf-store=none", "--llmperf-json=out.jsonl", *options)
    result.assert_outcomes(passed=int(not strict), failed=int(strict), warnings=int(not strict))
    ((claim,),) = {tuple(line["detail"] for line in row["claims"]) for row in lines()}
    said = (
        "one process; others may differ by more than this; undecided: the value is within 5 % of "
        "the bound, and one process was asked for. What would decide: several processes"
    )
    assert said in claim


def test_a_claim_far_from_its_bound_is_decided_by_one_process(project, run, lines):
    """It passes, and its line says that it rests on one process."""
    project(RUN.format(arguments=", processes=1", limit=40), script=DIFFERENT)
    run("--llmperf-json=out.jsonl", "--llmperf-store=none").assert_outcomes(passed=1, warnings=0)
    ((claim,),) = [row["claims"] for row in lines()]
    assert claim["outcome"] == "PASS"
    assert "one process; others may differ by more than this" in claim["detail"]


def test_a_load_that_is_dear_leaves_one_process(project, run, lines):
    """A minute of loading does not fit into the budget three times."""
    project(RUN.format(arguments="", limit=74), script=f"{DIFFERENT},load=60s")
    result = run("--llmperf-json=out.jsonl", "--llmperf-store=none")
    result.assert_outcomes(passed=1, warnings=1)
    (row,) = lines()
    assert row["processes"]["count"] == 1
    assert row["processes"]["note"].startswith("loading and warming up take 6")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [(", processes=5", ()), ("", ("--llmperf-processes=5",)), ("", ("-o", "llmperf_processes=5"))],
    ids=["argument", "option", "ini"],
)
def test_who_names_a_number_gets_it(project, run, lines, arguments, options):
    """However dear a load is."""
    project(RUN.format(arguments=arguments, limit=10), script=f"{DIFFERENT},load=60s")
    run("--llmperf-json=out.jsonl", *options).assert_outcomes(passed=1)
    assert [row["processes"]["count"] for row in lines()] == [5]


@pytest.mark.parametrize("number", ["0", "two", "1.5"])
def test_a_number_that_is_none_is_refused(project, run, number):
    """By the option as by the argument, naming the value."""
    project(RUN.format(arguments="", limit=10))
    result = run(f"--llmperf-processes={number}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--llmperf-processes='{number}'*whole number*auto*"])


def test_what_stored_sessions_show_stands_in_for_one_process(project, run, opened, lines):
    """After them the interval of one process holds its program, and the line says from where."""
    project(RUN.format(arguments=", processes=1", limit=10), script=DIFFERENT)
    run().assert_outcomes(passed=1)
    with opened() as store:
        (record,) = store.records()
        for hours, factor in enumerate((1.02, 0.97, 1.01, 0.99, 1.03), start=1):
            store.add(_earlier(record, hours, factor))
    run("--llmperf-json=out.jsonl").assert_outcomes(passed=1)
    (row,) = lines()
    assert row["processes"]["known"] == pytest.approx(0.03, rel=0.5)
    assert row["processes"]["known_from"] == "6 stored sessions"
    (throughput,) = [metric for metric in row["metrics"] if metric["name"] == "throughput"]
    reach = throughput["high"] / throughput["value"] - 1
    assert reach > 2.5 * row["processes"]["known"]


def _earlier(record, hours, factor):
    """The record as the process of another session made it, faster by a factor."""
    samples = {name: tuple(x * factor for x in xs) for name, xs in record.samples.items()}
    slower = earlier(record, hours, 1 / factor)
    return msgspec.structs.replace(slower, samples=samples)


def test_a_model_that_the_test_holds_is_one_process_and_says_so(project, run, lines):
    """It cannot be loaded anew, so a claim near its bound is undecided."""
    project(
        """
import time


def test_own(llmperf):
    def sleep():
        time.sleep(0.002)

    run = llmperf.measure(sleep, tokens=10)
    assert run.latency.p50 <= 1.02 * float(run.latency.p50)
"""
    )
    result = run("--llmperf-json=out.jsonl", "--llmperf-budget=1", "--llmperf-store=none")
    result.assert_outcomes(passed=1, warnings=1)
    (row,) = lines()
    assert row["processes"]["note"].startswith("the test itself holds the model")
    ((claim,),) = [row["claims"] for row in lines()]
    assert claim["outcome"] == "UNDECIDED"


def test_memory_is_no_matter_of_processes(project, run):
    """What is counted is compared as ever."""
    project(
        """
def test_memory(llm):
    run = llm.run(WORK, processes=1)
    assert run.memory.weights <= 1.001 * float(run.memory.weights)
""",
        script=DIFFERENT,
    )
    run("--llmperf-store=none").assert_outcomes(passed=1, warnings=0)


def test_a_suspicion_is_measured_again_in_several_processes(project, run, lines):
    """The gate's fresh measurements are spread as the first was."""
    body = "def test_b(llm):\n    llm.run(WORK)\n"
    project(body, script="ttft=50ms,tpot=10ms,noise=0.002,process=0.001")
    for _ in range(9):
        run().assert_outcomes(passed=1)
    slower = "ttft=65ms,tpot=13ms,noise=0.002,process=0.001"
    project(body, script=slower)
    run("--llmperf-json=out.jsonl", "--llmperf-gate=throughput:5%")
    first, *fresh = lines()
    assert [record["extra"]["attempt"] for record in fresh] == [2, 3, 4]
    assert min(record["processes"]["count"] for record in (first, *fresh)) >= 3


def test_a_load_on_servers_is_put_on_fresh_ones_where_that_is_asked_for(project, run, lines):
    """Each run is of a server of its own; without it, the load is of one and says so."""
    project(
        """
from pytest_llmperf import Serve

TRAFFIC = Serve(concurrency=2, requests=8, prompt_tokens=4, max_new_tokens=5)


def test_traffic(llm):
    llm.run(TRAFFIC, processes=3)
    llm.run(TRAFFIC)
""",
        script=DIFFERENT,
    )
    run("--llmperf-json=out.jsonl", "--llmperf-store=none").assert_outcomes(passed=1)
    several, one = lines()
    assert several["processes"]["sizes"] == [1, 1, 1]
    assert len(set(several["samples"]["throughput"])) == 3
    assert (one["processes"]["count"], one["processes"]["note"]) == (
        1,
        "a load is put on one server, as it was started",
    )
