"""pytest-benchmark's fixture under the marker: recorded, gated, and never silently green."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.stored_sessions import earlier, on_another_cpu, rewritten, with_metric

from pytest_llmperf.plugin.gate_watch import EXIT_JUDGED_NOTHING

pytestmark = pytest.mark.own_process

TIMER = """
import itertools, os, pytest

ticks = itertools.count()

def clock():
    return next(ticks) * float(os.environ.get("TICK", "0.010"))

pytestmark = [pytest.mark.llmperf, pytest.mark.benchmark(timer=clock)]

def test_chat({name}):
    {name}.pedantic(lambda: None, rounds=12)
"""
BENCH = TIMER.format(name="benchmark")


@pytest.fixture
def bench(pytester, run, opened):
    """`bench(sessions=n)` is a project with a benchmark, and n earlier sessions of it.

    They are copies that spread by 0.5 %.
    """

    def make(sessions: int = 0) -> None:
        pytester.makepyfile(test_bench=BENCH)
        if not sessions:
            return
        run().assert_outcomes(passed=1)
        with opened() as store:
            (record,) = store.records()
            for at in range(sessions - 1):
                near = with_metric(record, "time", 1 + 0.005 * (at % 3 - 1))
                store.add(earlier(near, at + 1, 1.0))

    return make


def values(opened):
    with opened() as store:
        return [
            (each.metrics[0].name, each.metrics[0].value, each.extra.get("attempt", 1))
            for each in store.records()
        ]


def test_its_rounds_are_recorded_as_the_median_time(bench, run, opened):
    """The metric is `time`, in seconds of one call; every round is kept."""
    bench()
    run("--llmperf-json=out.jsonl").assert_outcomes(passed=1)
    with opened() as store:
        (record,) = store.records()
    (metric,) = record.metrics
    assert (metric.name, metric.unit, metric.direction, metric.n) == (
        "time",
        "s",
        "lower",
        len(record.samples["time"]),
    )
    assert metric.value == pytest.approx(0.010)
    assert record.environment.facts["device"] == "cpu"
    assert record.outcome == "RECORDED"


def test_the_same_speed_passes_the_gate_and_half_the_speed_fails_in_that_test(
    bench, run, monkeypatch, opened
):
    """Judged against ten sessions, measured again in a process of its own, both attempts stored."""
    bench(10)
    result = run("--llmperf-gate")
    result.assert_outcomes(passed=1, warnings=0)
    assert result.ret == 0
    monkeypatch.setenv("TICK", "0.020")
    result = run("--llmperf-gate")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*time of as-is is 20* ms*more than in 1[01] accepted*measured again 3 times:*more*"]
    )
    assert [attempt for _, value, attempt in values(opened) if value > 0.015] == [4, 3, 2, 1]


@pytest.mark.nightly
def test_a_slow_moment_is_measured_again_and_passes(bench, run, pytester):
    """The first process of this session is slow, the fresh one is not."""
    bench(10)
    slow_here = (
        'import os\nos.environ["TICK"] = "0.010" if "--llmperf-gate=off" '
        'in __import__("sys").argv else "0.020"\n'
    )
    pytester.makepyfile(test_bench=slow_here + BENCH)
    result = run("--llmperf-gate")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*not seen again in fresh runs:*"])


# What --benchmark-compare-fail lets pass

OTHER = BENCH.replace("test_chat", "test_new")


def autosaved(run):
    run("--benchmark-autosave").assert_outcomes(passed=1)


@pytest.mark.nightly
def test_a_new_test_is_green_for_pytest_benchmark_and_not_for_us(bench, run, pytester):
    """Nothing was compared."""
    bench()
    autosaved(run)
    pytester.makepyfile(test_bench=OTHER)
    assert (
        run("--benchmark-compare", "--benchmark-compare-fail=median:5%", "--llmperf-store=none").ret
        == 0
    )
    result = run("--llmperf-gate")
    result.stdout.fnmatch_lines(
        [
            (
                "*not comparable: time of as-is is * not compared with "
                "history: there is no earlier session*"
            )
        ]
    )
    assert result.ret == EXIT_JUDGED_NOTHING


@pytest.mark.nightly
def test_xdist_is_green_for_pytest_benchmark_and_not_for_us(bench, run, monkeypatch):
    """It measures nothing there, whatever the regression."""
    bench(10)
    autosaved(run)
    monkeypatch.setenv("TICK", "0.050")
    quiet = ("-W", "ignore")
    assert (
        run(
            "--benchmark-compare",
            "--benchmark-compare-fail=median:5%",
            "-n",
            "2",
            "--llmperf-store=none",
            *quiet,
        ).ret
        == 0
    )
    result = run("--llmperf-gate", "-n", "2")
    assert "the time of the benchmark was not measured: pytest-benchmark is off here" in " ".join(
        " ".join(result.outlines).split(),
    )
    assert result.ret == EXIT_JUDGED_NOTHING


@pytest.mark.nightly
def test_another_machine_is_green_for_pytest_benchmark_and_named_by_us(
    bench, run, opened, pytester
):
    """Its file of another machine is compared with a warning; ours names the fact that differs."""
    bench(1)
    autosaved(run)
    (saved,) = (pytester.path / ".benchmarks").rglob("*.json")
    content = json.loads(saved.read_text())
    content["machine_info"]["cpu"]["brand_raw"] = "Another CPU"
    saved.write_text(json.dumps(content))
    theirs = run(
        "--benchmark-compare",
        "--benchmark-compare-fail=median:5%",
        "--llmperf-store=none",
        "-W",
        "ignore",
    )
    assert theirs.ret == 0
    rewritten(opened, on_another_cpu)
    result = run("--llmperf-gate")
    result.stdout.fnmatch_lines(["*another environment: cpu_model is *, was 'Another CPU'*"])
    assert result.ret == EXIT_JUDGED_NOTHING


@pytest.mark.nightly
def test_pytest_benchmark_itself_fails_a_regression_it_does_compare(bench, run, monkeypatch):
    """So that the three above are not green for want of a working gate."""
    bench()
    autosaved(run)
    monkeypatch.setenv("TICK", "0.050")
    assert (
        run("--benchmark-compare", "--benchmark-compare-fail=median:5%", "--llmperf-store=none").ret
        != 0
    )


def test_without_pytest_benchmark_everything_else_works(project, run, pytester):
    """The plugin is off: a fixture of that name is any fixture, and nothing is imported."""
    project("""
@pytest.fixture
def benchmark():
    return lambda function: function()

def test_speed(llm, benchmark):
    benchmark(lambda: llm.run(WORK))
    import sys
    assert not [name for name in sys.modules if name.startswith("pytest_benchmark")]
""")
    run("-p", "no:benchmark", "--llmperf-json=out.jsonl").assert_outcomes(passed=1)


def test_the_file_of_a_session_is_read_by_the_real_command(project, run_both, pytester):
    """--llmperf-benchmark-json, also under pytest-xdist; the runs of both tests are in it."""
    project("""
def test_one(llm):
    llm.run(WORK)

def test_two(llm_bf16):
    llm_bf16.run(WORK)
""")
    result = run_both("--llmperf-benchmark-json=out/bench.json")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*2 runs written to *bench.json in pytest-benchmark's format*"])
    command = [sys.executable, "-m", "pytest_benchmark", "compare", "out/bench.json"]
    done = subprocess.run(command, cwd=pytester.path, capture_output=True, text=True, check=True)
    assert "test_one" in done.stdout
    assert "test_two" in done.stdout
    found = json.loads((pytester.path / "out" / "bench.json").read_text())
    assert found["benchmarks"][0]["extra_info"]["outcome"] == "RECORDED"
    assert found["benchmarks"][0]["stats"]["median"] == pytest.approx(0.15)


def test_a_file_that_cannot_be_written_is_one_line_and_red(project, run, pytester):
    """At the end of the session, and no traceback."""
    project("\ndef test_one(llm):\n    llm.run(WORK)\n")
    (pytester.path / "taken").write_text("")
    result = run("--llmperf-benchmark-json=taken/bench.json")
    result.stdout.fnmatch_lines(["*llmperf: *bench.json cannot be written:*"])
    assert result.ret == 1
    assert "Traceback" not in result.stdout.str()


def test_sessions_of_a_benchmark_are_one_series(bench, run, opened):
    """Its workload, strategy and engine say what it is."""
    bench(2)
    with opened() as store:
        (series,) = store.series()
        assert (series.n, series.workload_text, series.strategy, series.engine) == (
            2,
            "benchmark",
            "as-is",
            "pytest-benchmark",
        )
