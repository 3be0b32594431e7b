"""The small form of `benchmarks/torture.py`: its rounds, and that it sees what went wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torture

nightly = pytest.mark.skipif(
    "LLMPERF_NIGHTLY" not in os.environ, reason="takes minutes: set LLMPERF_NIGHTLY"
)


def test_a_session_under_signals_loses_nothing_and_leaves_nothing(tmp_path):
    """One round of a session with grandchildren, whatever the signals hit."""
    shapes = [shape for shape in torture.SHAPES if shape.name == "grandchildren"]
    tally = torture.torture(tmp_path, hits=1, seconds=60, lanes=1, shapes=shapes, history=False)
    assert not tally.faults, tally.details
    assert tally.rounds == 1
    assert tally.n_hits > 0


@nightly
def test_five_hundred_signals_lose_nothing_and_leave_nothing(tmp_path):
    tally = torture.torture(tmp_path, hits=500, seconds=1800, lanes=2)
    assert not tally.faults, tally.details


def test_what_is_lost_doubled_and_left_is_counted(tmp_path):
    """The checks above can fail: a witnessed run that is nowhere, and a process that stays."""
    tally = torture.Tally()
    lane = torture.Lane(tmp_path / "lane0", tally, torture.random.Random(0), tmp_path / "engine")
    project = tmp_path / "lane0" / "plain"
    project.mkdir(parents=True)
    (project / torture.projects.WITNESS).write_text("run-1 passed\n")
    lane._count_runs(project, "", torture.SHAPES[0])
    stays = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        env={**os.environ, torture.MARK: "a-mark"},
    )
    try:
        torture.SETTLE_S, settle_s = 0.2, torture.SETTLE_S
        lane._count_orphans("a-mark", torture.SHAPES[0])
        assert stays.wait(10) != 0
    finally:
        torture.SETTLE_S = settle_s
        stays.kill()
        stays.wait()
    lane._count_words("INTERNALERROR>  File pytest_llmperf/x.py", torture.SHAPES[0])
    assert tally.faults == {"lost": 1, "orphans": 1, "wrong": 1}
