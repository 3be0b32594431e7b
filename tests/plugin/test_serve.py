"""Traffic in a project's tests, on a scripted model in virtual time.

Claims, records, notes, the search for the highest rate, and what is refused.
"""

from __future__ import annotations

import pytest
from support.stored_sessions import earlier

from pytest_llmperf.core import record_json

LOADS = """
from pytest_llmperf import Serve, Slo

LOAD = Serve(rate=10, requests=200, arrivals="constant", max_new_tokens=11, slo=Slo(ttft=0.06))
"""
FAST, FULL = "ttft=50ms,tpot=10ms", "ttft=50ms,tpot=10ms,slots=1,preemptions=3"


def test_a_load_is_measured_recorded_and_judged(project, run_both, lines):
    """Ten requests a second of 11 tokens, each 150 ms: all are within the limit.

    The record has them with the server's metrics.
    """
    project(
        LOADS
        + """
def test_within(llm):
    run = llm.run(LOAD)
    assert run.ttft.p95 <= 60 * ms
    assert run.goodput >= 9
    assert run.serving.attainment == 1
    assert run.throughput <= 120

def test_too_much(llm):
    assert llm.run(LOAD).tpot.p50 <= 9 * ms
""",
        script=FAST,
    )
    result = run_both("--llmperf-json=out.jsonl")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*serve 10/s constant*"])
    (row,) = [row for row in lines() if row["test"].endswith("within")]
    assert row["workload"]["type"] == "serve"
    assert row["extra"]["serving"]["offered_rate"] == pytest.approx(10, rel=0.01)
    assert {m["name"]: m["value"] for m in row["metrics"]}["goodput"] == pytest.approx(
        200 / 20.05, rel=0.01
    )


def test_what_a_reader_must_know_is_in_the_summary(project, run):
    """One slot serves 6.7 requests a second of the ten: the queue grows, the server preempts."""
    project(
        LOADS
        + "\ndef test_full(llm):\n    run = llm.run(LOAD)\n    assert run.serving.saturated\n",
        script=FULL,
    )
    result = run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*more is asked for than*", "*preempted 3 requests*"])


def test_a_client_that_is_the_limit_makes_the_run_invalid(project, run):
    """It sends 20 ms late; the same load on time is valid (above)."""
    project(LOADS + "\ndef test_late(llm):\n    llm.run(LOAD)\n", script=f"{FAST},late=20ms")
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            (
                "*InvalidRun: 0 of 3 runs of the load are valid: client-limited: "
                "the client sent its requests 20*"
            )
        ],
    )


def test_a_slower_server_is_found_side_by_side(project, run):
    """60 ms a token against 10, four pairs in turn; the control is the same server twice."""
    project(
        LOADS
        + """
WORK = Serve(concurrency=2, requests=20, max_new_tokens=11)

def test_slow(llm, llm_factory):
    slow, fast = llm_factory("fp16").compare(llm, WORK)
    assert slow.throughput >= 0.9 * fast.throughput

def test_same(llm, llm_factory):
    one, other = llm_factory("bf16").compare(llm, WORK)
    assert one.throughput >= 0.9 * other.throughput
""",
        script=f"{FAST},fp16/tpot=60ms",
    )
    result = run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["E*throughput of scripted fp16 is 0.2*x*claimed*0.9*"])


def test_the_highest_rate_is_found(project, run):
    """One slot of 150 ms serves 6.67 a second: up to that rate every request waits for none."""
    project(
        LOADS
        + """
def test_capacity(llm):
    found = llm.highest_rate(LOAD, start=1, within=0.05)
    assert found.highest <= 1 / 0.15 < found.lowest_broken
    assert found.lowest_broken <= found.highest * 1.05
""",
        script=f"{FAST},slots=1",
    )
    result = run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*highest rate within the SLO:*"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "llm.highest_rate(Serve(concurrency=1, requests=5))",
            "*an open loop (rate=) with an SLO is needed*",
        ),
        (
            "llm.highest_rate(LOAD, attainment=2)",
            "*highest_rate(attainment=2)*at most 1 is needed*",
        ),
        ("llm.run(Serve())", "*how is it loaded*"),
    ],
)
def test_what_cannot_be_asked_is_an_error(project, run, body, said):
    """It names the value."""
    project(LOADS + f"\ndef test_wrong(llm):\n    {body}\n")
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([said])


def test_a_load_needs_a_server(pytester, run):
    """Refused before the model is loaded, with the engines that can."""
    pytester.makepyfile(
        test_it="""
import pytest
from pytest_llmperf import Serve

@pytest.mark.llmperf(model="arch:tiny-llama")
def test_wrong(llm):
    llm.run(Serve(rate=1, requests=5))

ELSEWHERE = {"url": "http://127.0.0.1:9"}

@pytest.mark.llmperf(model="arch:tiny-llama", engine="server", options=ELSEWHERE, strategy="int8")
def test_int8(llm):
    pass

@pytest.mark.llmperf(model="org/name", engine="server:transformers", strategy="bf16")
def test_cannot_be_shown(llm):
    pass
""",
    )
    result = run()
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines_random(
        [
            "*Serve() is a load on a server, and engine 'transformers' is none*",
            "*'int8' cannot be honoured by engine 'server'*",
        ],
    )


def test_disabled_sessions_load_nothing(project, run):
    """Claims hold and are not judged."""
    project(LOADS + "\ndef test_off(llm):\n    assert llm.run(LOAD).goodput >= 1e9\n")
    run("--llmperf-disable").assert_outcomes(passed=1)


def test_a_gate_judges_loads_by_their_history(project, run, opened, pytester):
    """Twelve sessions of a load, a few tenths of a percent apart.

    The same again, and one a tenth slower.
    """
    body = LOADS + (
        "\ndef test_speed(llm):\n    llm.run(Serve(concurrency=2, "
        "requests=40, max_new_tokens=11))\n"
    )
    project(body, script=f"{FAST},noise=0.004")
    run("--llmperf-store=none", "--llmperf-json=one.jsonl").assert_outcomes(passed=1)
    record = record_json.decode((pytester.path / "one.jsonl").read_text().splitlines()[-1])
    with opened() as store:
        for hour in range(1, 13):
            store.add(earlier(record, hour, 1 + 0.001 * (hour % 5 - 2)))
    passed = run("--llmperf-gate")
    passed.assert_outcomes(passed=1)
    passed.stdout.no_fnmatch_line("*NOT COMPARABLE*")
    project(body, script="ttft=50ms,tpot=11ms,noise=0.004")
    failed = run("--llmperf-gate")
    failed.assert_outcomes(failed=1)
    failed.stdout.fnmatch_lines(["*Regression: throughput of *"])
