"""A measured test leaves records: in the summary, in the store, as JSON lines.

Plain and under pytest-xdist.
"""

from __future__ import annotations

import json
import sqlite3

import pytest

RUN = """
def test_speed(llm):
    run = llm.run(WORK)
    assert run.ttft.p50 <= 60 * ms
"""


def test_a_run_is_recorded_with_the_hand_computed_numbers(project, run_both, lines):
    """11 tokens at 50 ms + 10 x 10 ms: TTFT 0.05 s, TPOT 0.01 s, 11 tokens in 0.15 s."""
    project(RUN)
    run_both("--llmperf-json=out.jsonl").assert_outcomes(passed=1)
    (record,) = lines()
    values = {m["name"]: m["value"] for m in record["metrics"]}
    assert values["ttft.p50"] == pytest.approx(0.050)
    assert values["tpot.p50"] == pytest.approx(0.010)
    assert values["throughput"] == pytest.approx(11 / 0.150)
    assert values["decode_throughput"] == pytest.approx(100)
    assert record["outcome"] == "PASS"
    assert [c["outcome"] for c in record["claims"]] == ["PASS"]


def test_a_run_is_one_line_and_a_session_overwrites_unless_it_appends(project, run_both, pytester):
    """As every option that names a file; with the outcome, also of a test that fails late."""
    project(
        RUN
        + """
@pytest.fixture
def late():
    yield
    raise RuntimeError("late")

def test_late(llm, late):
    llm.run(WORK)
"""
    )
    file = pytester.path / "out.jsonl"

    def outcomes():
        rows = map(json.loads, file.read_text().splitlines())
        return sorted((row["test"].partition("::")[2], row["outcome"]) for row in rows)

    file.write_text("of an earlier session\n")
    run_both("--llmperf-json=out.jsonl")
    once = [("test_late", "FAIL"), ("test_speed", "PASS")]
    assert outcomes() == once
    run_both("--llmperf-json=out.jsonl", "--collect-only")
    assert outcomes() == once
    run_both("--llmperf-json=out.jsonl", "--llmperf-json-append")
    assert outcomes() == sorted(2 * once)


@pytest.mark.by_day_with_xdist
def test_the_store_holds_every_run_of_every_xdist_worker(project, run_both, pytester):
    """Four tests, four records, whoever ran them."""
    project("""
@pytest.mark.parametrize("n", range(4))
def test_speed(llm, n):
    llm.run(WORK)
""")
    run_both().assert_outcomes(passed=4)
    with sqlite3.connect(pytester.path / ".llmperf" / "history.db") as db:
        assert db.execute("select count(*) from llmperf_records").fetchone() == (4,)


def test_the_summary_is_the_same_plain_and_under_xdist(project, run):
    """One line a run, whatever process made it."""
    project("""
@pytest.mark.parametrize("llm", ["fp32", "bf16"], indirect=True)
def test_speed(llm):
    llm.run(WORK)
""")
    rows = [
        [line for line in run(*args).outlines if line.startswith("test_speed[")]
        for args in ([], ["-n", "2"])
    ]
    assert len(rows[0]) == 2
    assert rows[0] == rows[1]


def test_a_session_without_llmperf_tests_prints_nothing(pytester, run):
    """Installed, and silent."""
    pytester.makepyfile(test_plain="def test_it(): pass")
    shown = run().stdout.str().split("collected", 1)[1]
    assert "llmperf" not in shown


def test_piped_output_has_no_escape_codes(project, run):
    """Plain text without a terminal."""
    project(RUN)
    assert "\x1b" not in run().stdout.str()


def test_quiet_prints_one_line(project, run):
    """Under -q the whole summary is one line."""
    project(RUN)
    shown = [line for line in run("-q").outlines if "llmperf" in line]
    assert len(shown) == 1
