"""Side by side without a process, through the real comparison.

A session and a base of scripted models are on virtual clocks.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from datetime import date
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_llmperf.against import blocks
from pytest_llmperf.against.blocks import measure_block
from pytest_llmperf.against.comparison import Comparison
from pytest_llmperf.against.trees import Trees
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.side import SideFacts
from pytest_llmperf.core.verdicts.judge import Outcome, claims
from pytest_llmperf.errors import InvalidRun, WorkerDied
from pytest_llmperf.gate.calibration import Calibrated, write_calibrations
from pytest_llmperf.gate.gate import Regression
from pytest_llmperf.session.judges import Measurement
from pytest_llmperf.session.session import LlmperfSession
from pytest_llmperf.settings.against_target import Target
from pytest_llmperf.settings.options import OPTIONS
from pytest_llmperf.settings.settings import read
from pytest_llmperf.testing import scripted_plan
from pytest_llmperf.wire.commands import MeasureBlock
from pytest_llmperf.wire.results import BlockMeasured, Reached
from pytest_llmperf.worker.host import Host
from pytest_llmperf.workers import this_host
from pytest_llmperf.workers.in_process import InProcess
from pytest_llmperf.workers.pool import Pool
from pytest_llmperf.workloads import Decode

TEST = "test_it.py::test_speed"
WORK = Decode(batch=1, prompt_tokens=8, new_tokens=11)
NOISE = "noise=0.03"


class LocalSession(LlmperfSession):
    """A session whose workers are hosts in this process."""

    def _start_worker(self, plan: LoadPlan) -> InProcess:  # noqa: ARG002
        return InProcess(Host())


class ScriptedBase:
    """In place of a base side: it measures its own scripted model when told."""

    def __init__(
        self,
        session: LocalSession,
        script: str,
        *,
        folder: Path,
        errors: list[Exception] | None = None,
    ) -> None:
        self.target = Target(kind="folder", text="../before", path=folder)
        self.commands: list[MeasureBlock] = []
        self.released = False
        self._folder = folder
        self._session = session
        self._model = session_model(session, script)
        self._errors = errors or []

    def reach(self, test, following, *, release, gpus):  # noqa: ARG002 - as Base
        self.released = release
        self._session.recorder.begin(test, "")
        record = self._session.recorder.describe(self._model.load(), WORK)
        facts = {
            name: getattr(record, name) for name in SideFacts.__struct_fields__ if name != "facts"
        }
        return Reached(sides=(SideFacts(**facts, facts=record.environment.facts),))

    def trees(self):
        return Trees(head=self._folder, base=self._folder / "before")

    def block(self, command: MeasureBlock) -> BlockMeasured:
        self.commands.append(command)
        if self._errors:
            raise self._errors.pop(0)
        return measure_block(self._session, [self._model], WORK, command)


def session_model(session: LocalSession, script: str):
    from pytest_llmperf.session.model import Model

    return Model(session, scripted_plan(script))


@pytest.fixture(autouse=True)
def no_leases(monkeypatch):
    """Nobody else's measuring is waited for: clocks are virtual."""
    monkeypatch.setattr(this_host, "exclusive", lambda *_, **__: nullcontext())


@pytest.fixture
def session(tmp_path):
    """`session(**options)` is a session with these options that keeps no history."""

    def make(**options: str) -> LocalSession:
        values = {
            "store": "none",
            "budget": "2",
            **{name.replace("_", "-"): value for name, value in options.items()},
        }
        raw = {
            o.name: values.get(o.name, [] if o.many else False if o.flag else o.default)
            for o in OPTIONS
        }
        return LocalSession(read(lambda option: raw[option.name], tmp_path), lambda *_: None)

    return make


@pytest.fixture
def compared(session, tmp_path):
    """`compared(here, there)` makes one comparison.

    It gives its record, findings and base, and the error that it ended with.
    """

    def run(
        here: str,
        there: str,
        *,
        errors: list[Exception] | None = None,
        limits=None,
        planned: int = 1,
        **options: str,
    ):
        ours = session(**options)
        base = ScriptedBase(session(), there, folder=tmp_path, errors=errors)
        comparison = Comparison(base, ours)
        comparison.planned_tests = planned
        comparison.begin(TEST, None)
        model, raised = session_model(ours, here), None
        ours.recorder.begin(TEST, "")
        (record,) = ours.recorder.add(ours._sample([model], WORK))
        measurement = Measurement(models=[model], workload=WORK, again=list)
        with claims() as findings:
            try:
                comparison.judge([record], limits or {}, measurement)
            except Regression as error:
                raised = error
        return ours.recorder.records[record.id], findings, base, raised

    return run


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


@pytest.fixture
def opened(monkeypatch):
    """The models that workers were started for, in their order."""
    started: list[str] = []

    def start(_, plan):
        started.append(plan.model.location)
        return InProcess(Host())

    monkeypatch.setattr(LocalSession, "_start_worker", start)
    return started


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


FAST, SLOW = "ttft=50ms,tpot=10ms", "ttft=55ms,tpot=11ms"


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
            "one process a side, which the test itself holds; others may differ" in finding.detail
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
