"""When models are loaded, shared, ordered and released; what a project's own code can measure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.workers

SPEED = """
@pytest.mark.parametrize("llm", ["fp32", "bf16"], indirect=True)
@pytest.mark.parametrize("n", [1, 2])
def test_speed(llm, n):
    llm.run(WORK)
"""


def loads(pytester) -> int:
    """Worker processes that were started: one log each."""
    return len(list((pytester.path / ".llmperf" / "logs").glob("*.log")))


def test_equal_loads_are_neighbours_and_share_one_worker(project, run, pytester):
    """Four tests under two strategies load two models."""
    project(SPEED)
    result = run("-v")
    result.assert_outcomes(passed=4)
    order = [line.split("[")[1].split("]")[0] for line in result.outlines if "PASSED" in line]
    assert [("bf16" in name) for name in order] in (
        [False, False, True, True],
        [True, True, False, False],
    )
    assert loads(pytester) == 2


def test_a_worker_is_released_before_the_next_loads(project, run):
    """While the second strategy runs, the first one's worker is gone."""
    project("""
import psutil


def workers():
    me = psutil.Process()
    servers = [p for p in me.children() if "pytest_llmperf.worker.forkserver" in p.cmdline()]
    return [worker for server in servers for worker in server.children()]

@pytest.mark.parametrize("llm", ["fp32", "bf16"], indirect=True)
def test_speed(llm):
    assert len(workers()) == 1
""")
    run().assert_outcomes(passed=2)


def test_the_baseline_stays_loaded_beside_the_model(project, run, pytester):
    """Two candidates and one baseline are three loads."""
    project("""
@pytest.mark.parametrize("llm", ["fp16", "bf16"], indirect=True)
def test_speed(llm, baseline):
    llm.compare(baseline, WORK)
""")
    run().assert_outcomes(passed=2)
    assert loads(pytester) == 3


def test_the_pytest_process_never_imports_torch(project, run):
    """Not even while it measures, compares and records."""
    project("""
@pytest.mark.parametrize("llm", ["bf16"], indirect=True)
def test_speed(llm, baseline):
    llm.compare(baseline, WORK)
    llm.agreement(baseline)

def test_modules():
    import sys
    assert not {"torch", "transformers", "vllm", "numpy"} & set(sys.modules)
""")
    run().assert_outcomes(passed=2)


def test_llm_factory_gives_several_models(project, run, lines):
    """Two strategies in one test."""
    project("""
def test_two(llm_factory):
    ours, theirs = llm_factory("bf16").compare(llm_factory("fp32"), WORK)
    assert ours.throughput > 0
    assert theirs.throughput > 0
""")
    run("--llmperf-json=out.jsonl").assert_outcomes(passed=1)
    first, second = lines()
    assert first["paired_with"] == second["paired_with"] is not None


def test_agreement_with_the_baseline_is_recorded(project, run, lines):
    """Equal models agree fully, and the record says what was compared."""
    project("""
@pytest.mark.parametrize("llm", ["bf16"], indirect=True)
def test_quality(llm, baseline):
    llm.run(WORK)
    found = llm.agreement(baseline)
    assert found.ok
    assert found.top1 >= 0.95
""")
    run("--llmperf-json=out.jsonl").assert_outcomes(passed=1, warnings=0)
    assert lines()[0]["agreement"]


def test_an_agreement_that_other_prompts_could_decide_otherwise_passes_with_a_warning(project, run):
    """Two of a hundred tokens are others: the limit lies inside the interval, and it is said."""
    project(
        """
@pytest.mark.parametrize("llm", ["bf16"], indirect=True)
def test_quality(llm, baseline):
    assert llm.agreement(baseline, rule="perplexity(1.022)").ok
""",
        script="bf16/quality=0.98",
    )
    result = run()
    result.assert_outcomes(passed=1, warnings=1)
    said = " ".join(result.stdout.str().split())
    assert "perplexity(1.022) holds. perplexity(1.022) is decided on these 28 prompts" in said
    assert "other prompts may decide otherwise" in said


def test_a_bad_model_does_not_agree(project, run):
    """A tenth of its tokens are others: containment and perplexity reject it."""
    project(
        """
@pytest.mark.parametrize("llm", ["bf16"], indirect=True)
def test_quality(llm, baseline):
    found = llm.agreement(baseline)
    assert found.ok, found.report()
""",
        script="tpot=10ms,bf16/quality=0.5",
    )
    run().assert_outcomes(failed=1)


def test_a_baseline_compared_with_itself_is_reported_as_such(project, run):
    """fp32 against fp32 says nothing."""
    project("""
@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_quality(llm, baseline):
    llm.run(WORK)
    assert llm.agreement(baseline).same_model
""")
    result = run()
    result.assert_outcomes(passed=1)
    assert "itself" in result.stdout.str()


@pytest.mark.nightly
def test_a_callable_of_the_project_is_measured(project, run, lines):
    """llmperf.measure: rate and latency.

    Token times are not measurable, and comparing them is an error.
    """
    project("""
def test_own(llmperf):
    result = llmperf.measure(lambda: sum(range(20000)), tokens=10)
    assert result.throughput > 0

def test_own_ttft(llmperf):
    result = llmperf.measure(lambda: sum(range(20000)), tokens=10)
    assert result.ttft.p50 < 1
""")
    result = run("--llmperf-json=out.jsonl", "--llmperf-budget=0.5")
    result.assert_outcomes(passed=1, errors=1)
    assert {r["engine"] for r in lines()} == {"inprocess"}


def test_ctrl_c_keeps_every_record_and_leaves_no_worker(project, pytester, lines):
    """Interrupted in the second test."""
    project("""
def test_one(llm):
    llm.run(WORK)

def test_two(llm):
    llm.run(WORK)
    import os, time, psutil
    pids = [p.pid for p in psutil.Process().children(recursive=True)]
    with open("pids", "w") as file:
        file.write(" ".join(map(str, pids)))
    os.rename("pids", "reached")
    time.sleep(60)
""")
    command = [sys.executable, "-m", "pytest", "--llmperf-json=out.jsonl", "-p", "no:cacheprovider"]
    process = subprocess.Popen(
        command, cwd=pytester.path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 60
    while not (pytester.path / "reached").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in out
    assert len(lines()) == 2
    workers = [int(pid) for pid in (pytester.path / "reached").read_text().split()]
    assert workers
    assert not [pid for pid in workers if psutil.pid_exists(pid)]


def test_an_agreement_is_recorded_whatever_comes_first(project, run, lines):
    """Before the run, after it, or without one: an agreement's numbers are stored.

    A test that only compares outputs has its line.
    """
    project("""
@pytest.mark.parametrize("llm", ["bf16"], indirect=True)
def test_before(llm, baseline):
    assert llm.agreement(baseline).ok
    llm.run(WORK)

@pytest.mark.parametrize("llm", ["bf16"], indirect=True)
def test_alone(llm, baseline):
    assert llm.agreement(baseline).ok
""")
    result = run("--llmperf-json=out.jsonl")
    result.assert_outcomes(passed=2)
    found = {(r["test"].split("::")[1], r["workload"]["type"]): r for r in lines()}
    assert set(found) == {
        ("test_before[bf16]", "agreement"),
        ("test_before[bf16]", "decode"),
        ("test_alone[bf16]", "agreement"),
    }
    assert found["test_before[bf16]", "decode"]["agreement"]["top1"]["value"] == 1.0
    assert {m["name"] for m in found["test_alone[bf16]", "agreement"]["metrics"]} >= {
        "agreement.kl",
        "agreement.top1",
    }
    rows = [line.split()[0] for line in result.outlines if line.endswith("PASS")]
    assert [row.partition("[")[0] for row in rows] == ["test_before", "test_alone"]
