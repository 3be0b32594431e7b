"""Side by side: fresh processes in each pair, one process a side, and what processes cost."""

from __future__ import annotations

from datetime import date

from msgspec.structs import replace
from support.scripted_sides import FAST, NOISE, SLOW, LocalSession, ScriptedBase

from pytest_llmperf.against import blocks
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.gate.calibration import Calibrated, write_calibrations


def test_each_pair_has_a_fresh_process_of_each_version(compared, opened):
    """One worker here for the test's own run, one there to say what it measures, and one a pair."""
    record, (finding,), _, _ = compared(f"{NOISE},seed=1", f"{NOISE},seed=2")
    kept = record.extra["against"]["metrics"]["throughput"]
    assert finding.outcome is Outcome.PASS
    n = len(kept["pairs"])
    assert (opened.count(f"{NOISE},seed=1"), opened.count(f"{NOISE},seed=2")) == (1 + n, 1 + n)
    processes = kept["processes"]
    assert (processes["fresh"], processes["processes"]) == (True, 2 * n)
    assert 0 < processes["apart"] < 0.05
    assert f"({n} pairs, {2 * n} processes {100 * processes['apart']:.2g}" in finding.text
    assert " % apart)" in finding.text


def held(monkeypatch):
    """As where the test itself holds its model: no worker can be started anew."""
    monkeypatch.setattr(LocalSession, "renew", lambda *_: False)


def test_one_process_a_side_is_no_evidence_about_two_versions(compared, monkeypatch):
    """Equal, and 10 % slower: UNDECIDED after six pairs, which says why."""
    held(monkeypatch)
    for here in (f"{NOISE},seed=1", f"{SLOW},seed=1"):
        record, (finding,), _, raised = compared(here, "seed=2")
        assert (finding.outcome, raised) == (Outcome.UNDECIDED, None)
        assert "pairs, all of one process a side)" in finding.text
        assert (
            "one process a side, which cannot be started anew; others may differ" in finding.detail
        )
        assert 6 <= len(record.extra["against"]["metrics"]["throughput"]["pairs"]) <= 12


def test_one_process_a_side_that_takes_twice_as_long_fails(compared, monkeypatch):
    """No two processes of one program were seen to differ so; a second look would add nothing."""
    held(monkeypatch)
    _, (finding,), _, raised = compared("ttft=100ms,tpot=20ms", "ttft=50ms,tpot=10ms")
    assert finding.outcome is Outcome.FAIL
    assert "again" not in str(raised)


def test_a_calibrated_spread_of_processes_stands_in_for_them(compared, monkeypatch, tmp_path):
    """0.3 % apart: equal versions pass, and 10 % fails."""
    held(monkeypatch)
    monkeypatch.setattr(Calibrated, "covers", lambda *_: True)
    write_calibrations(tmp_path, [CALIBRATED])
    assert compared("seed=1", "seed=2")[1][0].outcome is Outcome.PASS
    assert compared(SLOW, FAST)[1][0].outcome is Outcome.FAIL


CALIBRATED = Calibrated(
    metric="throughput",
    model="m",
    strategy="fp32",
    workload="w",
    device="d",
    floor=0.02,
    spread=0.003,
    false_alarms=0.0,
    sessions=12,
    pairs=60,
    date=date(2026, 11, 30),
    versions={"torch": "2.11"},
)


def test_an_older_base_that_says_nothing_of_its_process_counts_as_one_process(
    compared, monkeypatch
):
    """Its answer has no `load`."""
    block = ScriptedBase.block
    monkeypatch.setattr(
        ScriptedBase, "block", lambda self, command: replace(block(self, command), load=None)
    )
    _, (finding,), _, _ = compared("seed=1", "seed=2")
    assert finding.outcome is Outcome.UNDECIDED


def slow_to_start(monkeypatch, seconds):
    """A process takes so long to start, on a clock that stands still else."""
    clock = {"s": 0.0}
    load = blocks._load

    def loaded(*arguments, ready_s, **others):
        return load(*arguments, ready_s=ready_s + seconds, **others)

    monkeypatch.setattr(blocks, "_load", loaded)
    monkeypatch.setattr(blocks.time, "monotonic", lambda: clock["s"])


def test_processes_that_are_dear_to_start_give_more_repetitions(compared, monkeypatch):
    """sqrt of the cost of a load by that of a repetition, once the first pair has shown both.

    Where processes do not differ, they sample for as long as they take to start.
    """
    slow_to_start(monkeypatch, 20.0)
    _, (finding,), base, _ = compared(f"{NOISE},seed=1", f"{NOISE},seed=2", against_budget="600")
    first, *later = [command.repetitions for command in base.commands]
    assert first == 0
    assert 11 <= later[0] <= 13
    assert all(4 <= n <= 21 / 0.15 for n in later)
    assert finding.outcome is Outcome.PASS
    assert "of the time, so that each process gave" in finding.detail


def test_processes_that_start_at_once_are_worth_more_than_repetitions(compared, monkeypatch):
    """Blocks are then as short as an interval allows."""
    slow_to_start(monkeypatch, 0.0)
    _, _, base, _ = compared(f"{NOISE},seed=1", f"{NOISE},seed=2", budget="60")
    assert [command.repetitions for command in base.commands][1:3] == [4, 4]


def test_a_high_percentile_keeps_its_samples(compared, monkeypatch):
    """p95 needs forty: blocks are not shortened below what the first gave."""
    slow_to_start(monkeypatch, 0.0)
    limits = {"latency.p95": 0.05}
    _, findings, base, _ = compared(
        "noise=0.02,seed=1", "noise=0.02,seed=2", limits=limits, budget="60", precision="0.1"
    )
    assert all(command.repetitions >= 40 for command in base.commands[1:])
    assert {finding.outcome for finding in findings} == {Outcome.PASS}


def test_a_comparison_that_cannot_have_six_pairs_is_given_up_after_the_first(compared, monkeypatch):
    """It says what a pair takes, of which how much to start, and the budget that it would need."""
    slow_to_start(monkeypatch, 120.0)
    record, (finding,), _, _ = compared("seed=1", "seed=2")
    assert finding.outcome is Outcome.UNDECIDED
    assert len(record.extra["against"]["metrics"]["throughput"]["pairs"]) == 1
    assert "of which its two processes take 240 s to start" in finding.detail
    assert "6 pairs need --llmperf-against-budget=7" in finding.detail


def test_a_suspicion_without_time_for_a_second_look_is_undecided(compared, monkeypatch):
    """Seven pairs fit, not twelve."""
    slow_to_start(monkeypatch, 40.0)
    _, (finding,), _, raised = compared(f"{SLOW},seed=1", f"{FAST},seed=2")
    assert (finding.outcome, raised) == (Outcome.UNDECIDED, None)
    assert "no time was left to see it again: a pair takes" in finding.detail
