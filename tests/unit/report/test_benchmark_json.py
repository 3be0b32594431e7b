"""Runs in pytest-benchmark's format: its own statistics, its own compare command."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_benchmark.stats import Stats
from support.history_records import record

from pytest_llmperf.core.record import Environment
from pytest_llmperf.report.benchmark_json import document, stats

GPU = Environment(
    facts={
        "device": "cuda",
        "device_name": "NVIDIA H200",
        "device_count": 1,
        "driver": "580.1",
        "git_commit": "abc",
    },
)
TIMES = (0.9, 1.0, 1.1, 1.05, 0.95)


def written(path: Path, *records) -> Path:
    path.write_text(json.dumps(document(records, "2026-11-23T05:00:00+00:00")))
    return path


@given(data=st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=40))
def test_the_statistics_are_those_of_pytest_benchmark(data):
    """Every field that its own class gives, for any rounds."""
    theirs = Stats()
    for x in data:
        theirs.update(x)
    ours = stats(data, 1)
    assert ours.keys() == {*Stats.fields, "data", "iterations"}
    for name, value in theirs.as_dict().items():
        assert value == ours[name] or math.isclose(value, ours[name], rel_tol=1e-12), name


def test_a_run_that_is_measured_again_is_one_row():
    """Under the name that it has in a green session."""
    once = record("a", samples={"latency": TIMES})
    again = record("b", samples={"latency": TIMES}, extra={"attempt": 2})
    rows = [document(runs, "2026-11-23")["benchmarks"] for runs in ((once,), (once, again))]
    assert [row["name"] for row in rows[1]] == [row["name"] for row in rows[0]]


def test_the_real_command_compares_two_files(tmp_path):
    """`pytest-benchmark compare` reads both and shows both runs of the test under each other."""
    old = written(tmp_path / "0001_old.json", record("a", samples={"latency": TIMES}))
    new = written(
        tmp_path / "0002_new.json", record("b", samples={"latency": tuple(2 * x for x in TIMES)})
    )
    command = [
        sys.executable,
        "-m",
        "pytest_benchmark",
        "compare",
        "--group-by=fullname",
        str(old),
        str(new),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert "test_precision.py::test_pays[bf16]': 2 tests" in done.stdout
    assert "(2.0" in done.stdout  # the newer is 2.0 times the older


def test_a_file_that_is_not_in_the_format_is_refused_by_the_same_command(tmp_path):
    """So that the test above could fail."""
    broken = json.loads(
        written(tmp_path / "0001_x.json", record("a", samples={"latency": TIMES})).read_text()
    )
    del broken["benchmarks"][0]["stats"]["iqr"]
    (tmp_path / "0001_x.json").write_text(json.dumps(broken))
    command = [sys.executable, "-m", "pytest_benchmark", "compare", str(tmp_path / "0001_x.json")]
    assert (
        subprocess.run(
            command, cwd=tmp_path, capture_output=True, check=False, timeout=60
        ).returncode
        != 0
    )


def test_machine_info_names_the_gpu_and_a_run_on_a_cpu_has_none():
    """Two files from different GPUs differ where pytest-benchmark's own would be equal."""
    on_gpu, on_cpu = (
        document([record("a", samples={"latency": TIMES}, **more)], "")
        for more in ({"environment": GPU}, {})
    )
    assert on_gpu["machine_info"]["gpu"] == {"name": "NVIDIA H200", "count": 1, "driver": "580.1"}
    assert on_gpu["commit_info"]["id"] == "abc"
    assert "gpu" not in on_cpu["machine_info"]


def test_several_runs_of_a_test_have_names_of_their_own():
    """compare() has two sides.

    A single run keeps the test's own name, so that files of pytest-benchmark match it.
    """
    sides = [record(s, strategy=s, samples={"latency": TIMES}) for s in ("bf16", "fp32")]
    names = [bench["fullname"] for bench in document(sides, "")["benchmarks"]]
    assert names == [
        f"{sides[0].test} bf16 decode b1 p128 n128",
        f"{sides[0].test} fp32 decode b1 p128 n128",
    ]
    assert document(sides[:1], "")["benchmarks"][0]["fullname"] == sides[0].test


@pytest.mark.parametrize("samples", [{}, {"throughput": (1.0,)}])
def test_a_record_without_times_is_left_out(samples):
    """An agreement has none."""
    assert document([record("a", samples=samples)], "")["benchmarks"] == []
