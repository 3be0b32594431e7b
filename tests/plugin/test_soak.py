"""The soak in small: the same command with a scripted engine, interrupted and gone on with.

A FAIL misses the bar.
"""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from soak import LOG, Session, prepare, report, run_one, sessions, upper_bound
from support.stored_sessions import earlier

from pytest_llmperf.history.store import open_store

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PASSED = Session(gated=True, outcome="PASS", exit_code=0, took_s=1.0)


def soak(folder: Path, what: str, n: int) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(BENCHMARKS / "soak.py"),
        what,
        "--engine=scripted",
        f"--sessions={n}",
        f"--folder={folder}",
    ]
    return subprocess.run([*command, "--budget=1"], check=False, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path, own_cache, monkeypatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / "soak"


def eight_sessions(folder: Path) -> None:
    """One session as the soak makes it, seven copies of it, and a line that is half written.

    So an interrupted soak looks.
    """
    prepare(folder, "same", "scripted")
    first = run_one(folder, Namespace(what="same", budget=1), gated=False)
    with open_store("sqlite:///.llmperf/history.db", folder=folder) as store:
        model = next(iter(store.records()))
        for hours in range(1, 8):
            store.add(earlier(model, hours, 1 + 0.01 * (hours % 3 - 1)))
    (folder / LOG).write_text(8 * (json.dumps(asdict(first)) + "\n") + '{"half', encoding="utf-8")


@pytest.mark.nightly
def test_an_interrupted_soak_goes_on_from_its_store_and_a_slower_session_misses_the_bar(folder):
    """Two gated verdicts without a FAIL, and none when asked again.

    Then 30 % more time: one FAIL, its text, and exit code 1.
    """
    eight_sessions(folder)
    done = soak(folder, "same", 2)
    assert (done.returncode, len(sessions(folder))) == (0, 10), done.stdout + done.stderr
    assert "same: 2 verdicts: 2 PASS, 0 FAIL" in done.stdout
    assert "false alarms: 0 of 2, at most 77.64 %" in done.stdout
    assert (soak(folder, "same", 2).returncode, len(sessions(folder))) == (0, 10)
    test = folder / "test_decode.py"
    test.write_text(test.read_text().replace("{50 *", "{65 *").replace("{10 *", "{13 *"))
    done = soak(folder, "same", 3)
    assert done.returncode == 1
    assert "false alarms: 1 of 3" in done.stdout
    assert "FAIL: throughput of auto is 5" in done.stdout


@pytest.mark.nightly
def test_ten_percent_are_found_side_by_side(folder):
    """By rule B, with its pairs and its ratio, which is another in each session."""
    done = soak(folder, "slower", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    found = sessions(folder)
    assert [each.outcome for each in found] == ["FAIL", "FAIL"]
    assert min(each.pairs for each in found) >= 6
    assert [each.ratio for each in found] == [pytest.approx(1 / 1.1, abs=0.03)] * 2
    assert found[0].ratio != found[1].ratio


def test_sessions_without_a_verdict_do_not_count(folder):
    """INVALID is neither an alarm nor a silence; no verdict meets no bar.

    Five of a hundred may be missed.
    """
    invalid = replace(PASSED, outcome="INVALID")
    assert report("same", [invalid])[1] is False
    lines, met = report("same", [PASSED, invalid, replace(PASSED, gated=False)])
    assert met
    assert "1 verdicts: 1 PASS, 0 FAIL, 0 UNDECIDED; 1 sessions without a verdict" in lines[0]
    found = replace(PASSED, outcome="FAIL", pairs=6, ratio=0.9)
    assert report("slower", [found] * 95 + [PASSED] * 5)[1] is True
    assert report("slower", [found] * 94 + [PASSED] * 6)[1] is False


@pytest.mark.parametrize(
    ("hits", "n", "bound"),
    [(0, 200, 0.01487), (0, 1, 0.95), (1, 100, 0.0466), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_the_bound_is_that_of_published_tables(hits, n, bound):
    """No hit of n: 1 - 0.05^(1/n)."""
    assert upper_bound(hits, n) == pytest.approx(bound, abs=1e-4)
