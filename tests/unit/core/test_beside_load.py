"""Which repetitions and pairs count beside other programs, and what is decided of them."""

from __future__ import annotations

import pytest

from pytest_llmperf.against.pairs import require_alike
from pytest_llmperf.core.foreign_load import (
    ALIKE_WITHIN,
    CPU_SHARE,
    UNDER_LOAD,
    OthersWork,
    hits_alike,
    mean_share,
    under_load,
)
from pytest_llmperf.core.loaded import TimedRun
from pytest_llmperf.core.metrics.origin import Origin, distribution, sampled
from pytest_llmperf.core.metrics.readings import cpu_time_per_token
from pytest_llmperf.core.trace import Mark, RequestTrace, TokenEvent, Trace
from pytest_llmperf.core.verdicts.estimate import Estimate
from pytest_llmperf.core.verdicts.judge import Outcome, decide
from pytest_llmperf.errors import InvalidRun, SteadyLoad
from pytest_llmperf.session.sampling import Goal, Side, sample, valid_indices, warm_up

LOAD = Mark(kind="foreign-load", detail="other processes used 60% of 2 cores (limit 25%)")
HEAT = Mark(kind="throttled", detail="below its clocks for heat")
GOAL = Goal(precision=0.01, budget_s=60.0)


def repetition(*marks: Mark, seconds: float = 1.0, share: float | None = None) -> TimedRun:
    events = (TokenEvent(1), TokenEvent(round(seconds * 1e9)))
    request = RequestTrace(n_prompt_tokens=1, t_due_ns=0, events=events)
    telemetry = {} if share is None else {CPU_SHARE: share}
    trace = Trace(repetition=0, requests=(request,), marks=marks)
    return TimedRun(trace=trace, step=None, telemetry=telemetry)


def side(*runs: TimedRun, allow_load: bool = False) -> Side:
    """A model of which each repetition is the next of these; the last of them stays."""
    return Side(
        name="bf16",
        repeat=lambda number: runs[min(number, len(runs) - 1)],
        allow_load=allow_load,
    )


def show(*_: object) -> None:
    """Show nothing."""


def test_steady_load_ends_a_warm_up_within_ten_seconds():
    """It is not stable, and would have gone on for 30 s."""
    unstable = [repetition(LOAD, seconds=1.1**number) for number in range(100)]
    loaded = side(*unstable)
    with pytest.raises(SteadyLoad, match=r"bf16.*60% of 2 cores"):
        warm_up(loaded, GOAL, show)
    assert 8 <= loaded.loaded_s < 11


def test_without_load_the_same_warm_up_goes_on():
    calm = side(*[repetition(seconds=1.1**number) for number in range(100)])
    assert sum(warm_up(calm, GOAL, show).durations_s) > 20


def test_steady_load_ends_sampling_too():
    with pytest.raises(SteadyLoad):
        sample([side(repetition(), repetition(LOAD))], GOAL, show)


def test_load_with_gaps_is_not_steady():
    """Every third repetition is free: its marked ones are left out, and the run is made."""
    runs = [repetition(*((LOAD,) if number % 3 else ()), seconds=0.5) for number in range(400)]
    with pytest.raises(InvalidRun, match="--llmperf-allow-load") as error:
        sample([side(*runs)], Goal(precision=0.01, budget_s=5.0), show)
    assert not isinstance(error.value, SteadyLoad)


def test_load_that_is_allowed_counts_and_heat_does_not():
    allowed = side(*[repetition(LOAD, HEAT), repetition(LOAD)], allow_load=True)
    sample([allowed], GOAL, show)
    assert valid_indices([allowed])[0] == 1
    assert len(valid_indices([allowed])) == len(allowed.runs) - 1


def test_what_a_record_keeps_of_it():
    assert under_load([(LOAD,), (), (HEAT,)], 0.4) == {UNDER_LOAD: {"repetitions": 1, "share": 0.4}}
    assert under_load([(), (HEAT,)]) == {}
    assert mean_share([repetition(share=0.2), repetition(share=0.4)]) == pytest.approx(0.3)
    assert mean_share([repetition(share=0.2), repetition()]) == pytest.approx(0.2)
    assert mean_share([repetition(), repetition()]) is None


@pytest.mark.parametrize(
    ("shares", "alike"),
    [
        ((0.5, 0.5 + ALIKE_WITHIN - 0.01), True),
        ((0.5, 0.5 + ALIKE_WITHIN + 0.01), False),
        ((0.5, None), False),
        ((None, None), False),
        ((), False),
    ],
)
def test_load_hits_a_pair_alike(shares, alike):
    assert hits_alike(shares) is alike


def test_a_pair_counts_beside_load_that_hits_it_alike_only():
    quiet, loaded = OthersWork(share=0.02), OthersWork(beside=True, share=0.5)
    require_alike(quiet, quiet)
    require_alike(quiet, OthersWork(share=0.24))
    require_alike(loaded, OthersWork(beside=True, share=0.55))
    for base, head in ((quiet, loaded), (loaded, quiet), (loaded, OthersWork(beside=True))):
        with pytest.raises(InvalidRun, match="other programs used"):
            require_alike(base, head)


# What is decided of a run beside other programs

BESIDE = Origin(subject="bf16", disturbed=True)
SAMPLES = tuple(10.0 + 0.01 * number for number in range(12))


def outcome(op: str, left: Estimate, right: object) -> Outcome:
    return decide(op, left, right).outcome


def test_a_limit_that_is_missed_beside_load_is_undecided_and_says_why():
    finding = decide(">=", sampled("throughput", SAMPLES, BESIDE), 20)
    assert finding.outcome is Outcome.UNDECIDED
    assert "other programs worked beside it" in finding.detail
    assert outcome(">=", sampled("throughput", SAMPLES, Origin()), 20) is Outcome.FAIL


def test_a_limit_that_is_kept_beside_load_is_kept():
    assert outcome(">=", sampled("throughput", SAMPLES, BESIDE), 5) is Outcome.PASS
    assert outcome("<=", distribution("ttft", SAMPLES, BESIDE).p50, 20) is Outcome.PASS


def test_a_claim_to_be_slow_is_not_proved_by_load():
    assert outcome("<=", sampled("throughput", SAMPLES, BESIDE), 20) is Outcome.UNDECIDED
    assert outcome("<=", sampled("throughput", SAMPLES, Origin()), 20) is Outcome.PASS


def test_a_comparison_in_turn_is_decided_beside_load():
    pair = BESIDE._replace(pair="p")
    fast = sampled("throughput", SAMPLES, pair)
    slow = sampled("throughput", [x / 2 for x in SAMPLES], pair)
    assert outcome(">=", fast, 1.5 * slow) is Outcome.PASS
    assert outcome(">=", slow, 0.9 * fast) is Outcome.FAIL


def test_two_runs_one_after_the_other_are_not_decided_against_each_other():
    fast = sampled("throughput", SAMPLES, Origin())
    slow = sampled("throughput", [x / 2 for x in SAMPLES], BESIDE)
    assert outcome(">=", slow, 0.9 * fast) is Outcome.UNDECIDED


def test_cpu_time_is_decided_beside_load():
    measured = cpu_time_per_token([(x, 1) for x in SAMPLES], "", BESIDE)
    assert isinstance(measured, Estimate)
    assert outcome("<=", measured, 5) is Outcome.FAIL
