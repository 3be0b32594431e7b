"""Side by side: what is decided of pairs of scripted models, and what is said of it."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from msgspec.structs import replace
from support.scripted_sides import FAST, NOISE, SLOW, LocalSession

from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.errors import InvalidRun, WorkerDied
from pytest_llmperf.worker.host import Host
from pytest_llmperf.workers.in_process import InProcess
from pytest_llmperf.workers.pool import Pool


def test_a_slower_version_fails_with_its_ratio_and_is_seen_again(compared):
    """Ten per cent more time, 3 % noise: FAIL after few pairs, all of fresh workers."""
    record, (finding,), base, raised = compared(
        f"ttft=55ms,tpot=11ms,{NOISE},seed=1", f"ttft=50ms,tpot=10ms,{NOISE},seed=2"
    )
    kept = record.extra["against"]["metrics"]["throughput"]
    assert finding.outcome is Outcome.FAIL
    assert str(raised).startswith("throughput of fp32 is 0.9")
    assert "(again: 0.9" in finding.text
    assert kept["outcome"] == "FAIL"
    assert 6 <= len(kept["pairs"]) <= 12
    assert all(command.fresh for command in base.commands)


def test_the_same_version_passes(compared):
    """No change: what is refuted is a worsening by 5 %."""
    _, (finding,), _, raised = compared(f"{NOISE},seed=1", f"{NOISE},seed=2")
    assert (finding.outcome, raised) == (Outcome.PASS, None)
    assert "5.0 % worse is refuted" in finding.detail


def test_a_faster_version_passes(compared):
    """Better is never a failure."""
    _, (finding,), _, _ = compared(f"ttft=40ms,tpot=8ms,{NOISE},seed=1", f"{NOISE},seed=2")
    assert finding.outcome is Outcome.PASS


def test_one_slow_process_is_no_suspicion(compared, monkeypatch):
    """One of many was slower by 10 %: the pairs after it are not."""
    scripts = iter([SLOW, FAST])
    monkeypatch.setattr(LocalSession, "_start_worker", lambda _, plan: _scripted(plan, scripts))
    _, (finding,), _, raised = compared("seed=1", FAST)
    assert (finding.outcome, raised) == (Outcome.PASS, None)


def test_a_suspicion_that_is_not_seen_again_is_undecided(compared, monkeypatch):
    """The first six processes were slow: it is said, and the test does not fail."""
    scripts = iter([FAST, *[SLOW] * 6])
    monkeypatch.setattr(LocalSession, "_start_worker", lambda _, plan: _scripted(plan, scripts))
    _, (finding,), _, raised = compared("seed=1", FAST)
    assert (finding.outcome, raised) == (Outcome.UNDECIDED, None)
    assert "not seen again" in finding.text


def _scripted(plan, scripts):
    """A worker of the next script for the version here, and of its own for the base."""
    from pytest_llmperf.engines import engine

    script = next(scripts, FAST) if plan.model.location == "seed=1" else plan.model.location
    return InProcess(
        Host(
            find_engine=lambda asked: _Renamed(
                engine("scripted").load(), replace(asked.model, location=script)
            )
        )
    )


class _Renamed:
    """Opens another script than the one asked for."""

    def __init__(self, engine, model) -> None:
        self._engine, self._model = engine, model

    def open(self, plan):
        from msgspec.structs import replace

        return self._engine.open(replace(plan, model=self._model))


def test_versions_that_do_not_fit_together_are_loaded_in_turn(compared, monkeypatch, opened):
    """Ours is closed after each of its blocks, and the base is told to do the same."""
    fits = Pool.fits_together
    monkeypatch.setattr(
        Pool, "fits_together", lambda self, *plans: len(plans) < 2 and fits(self, *plans)
    )
    _, (finding,), base, _ = compared("seed=1", "seed=2")
    assert finding.outcome is Outcome.PASS
    assert base.released
    assert opened.count("seed=1") == 1 + 6


def test_both_blocks_of_a_pair_have_the_same_prompts_and_no_two_pairs_have(compared):
    """Prompts are numbered by repetition."""
    _, _, base, _ = compared(f"{NOISE},seed=1", f"{NOISE},seed=2")
    first = [command.first_repetition for command in base.commands]
    assert len(set(first)) == len(first)
    assert min(b - a for a, b in pairwise(first)) >= 10_000


def test_the_budget_ends_a_comparison_and_says_how_many_pairs_it_took(compared):
    """One second of sampling is less than six pairs."""
    _, (finding,), _, _ = compared(f"{NOISE},seed=1", f"{NOISE},seed=2", against_budget="1")
    assert finding.outcome is Outcome.UNDECIDED
    assert "the budget of 1 s (--llmperf-against-budget) ended after" in finding.detail
    assert "6 are needed" in finding.detail


def test_an_invalid_pair_is_measured_again(compared):
    """A block that foreign load spoiled costs its pair, not the test."""
    record, (finding,), _, _ = compared("seed=1", "seed=2", errors=[InvalidRun("foreign load")] * 3)
    assert finding.outcome is Outcome.PASS
    assert len(record.extra["against"]["metrics"]["throughput"]["pairs"]) == 6


def test_too_many_invalid_pairs_are_the_tests_error(compared):
    """Neither pass nor fail."""
    with pytest.raises(InvalidRun, match="6 of 6 pairs were not valid; the last: foreign load"):
        compared("seed=1", "seed=2", errors=[InvalidRun("foreign load")] * 99)


def test_a_base_that_dies_in_the_middle_is_not_comparable_with_its_message(compared):
    """Its log is in the detail."""
    _, (finding,), _, raised = compared(
        "seed=1", "seed=2", errors=[WorkerDied("worker ended by signal SIGKILL\nits log")]
    )
    assert (finding.outcome, raised) == (Outcome.NOT_COMPARABLE, None)
    assert (
        "the base failed while it was measured: WorkerDied: worker ended by signal SIGKILL"
        in finding.text
    )
    assert "its log" in finding.detail


def test_what_cannot_be_compared_fails_where_a_baseline_is_required(compared):
    """As with the gate."""
    _, _, _, raised = compared(
        "seed=1", "seed=2", errors=[WorkerDied("gone")], require_accepted=True
    )
    assert "was not compared with ../before" in str(raised)


def test_more_weights_fail_by_counting_and_need_no_second_pair(compared):
    """Bytes are no noise: one pair, exact."""
    record, findings, _, raised = compared(
        "weights=102MB", "weights=100MB", limits={"memory.weights": 0.01, "throughput": 0.03}
    )
    by_metric = {finding.left.partition(" ")[0]: finding for finding in findings}
    assert by_metric["memory.weights"].outcome is Outcome.FAIL
    assert "1.02x ../before, allowed 1.0 % worse  (counted)" in str(raised)
    assert len(record.extra["against"]["metrics"]["memory.weights"]["pairs"]) == 1


def test_a_metric_that_cannot_be_measured_is_named(compared):
    """It has no pairs; the others have."""
    _, findings, _, _ = compared("seed=1", "seed=2", limits={"goodput": 0.05})
    outcomes = {finding.left.partition(" ")[0]: finding.outcome for finding in findings}
    assert outcomes == {"throughput": Outcome.PASS, "goodput": Outcome.NOT_COMPARABLE}


def test_more_series_need_more_evidence(compared):
    """A thousand tests share the session's error of 1 %."""
    record, *_ = compared("ttft=55ms,tpot=11ms,seed=1", "seed=2", planned=1000)
    assert record.extra["against"]["metrics"]["throughput"]["evidence"] == 100_000


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_equal_versions_never_fail(compared, noise):
    """Forty comparisons of two equal versions (400 where there is time): not one FAIL.

    With moderate noise nearly all PASS.
    """
    n = 400 if "LLMPERF_NIGHTLY" in os.environ else 40
    scripts = [(f"noise={noise},seed={2 * i}", f"noise={noise},seed={2 * i + 1}") for i in range(n)]
    outcomes = [compared(*each, budget="0.5")[1][0].outcome for each in scripts]
    assert Outcome.FAIL not in outcomes
    assert outcomes.count(Outcome.PASS) >= (0.95 * n if noise == 0.02 else 1)


def test_a_slowdown_of_a_tenth_is_found_nearly_always(compared):
    """The negative control of the control above: ten per cent, 2 % noise, twenty comparisons."""
    scripts = [
        (f"ttft=55ms,tpot=11ms,noise=0.02,seed={2 * i}", f"noise=0.02,seed={2 * i + 1}")
        for i in range(20)
    ]
    outcomes = [compared(*each, budget="0.5")[1][0].outcome for each in scripts]
    assert outcomes.count(Outcome.FAIL) >= 19
