"""Which sessions are accepted: what is suspicious moves nothing until it is resolved."""

from __future__ import annotations

import math
import random

import gate_simulated
import pytest
from gate_simulated import Machine
from hypothesis import given, settings
from hypothesis import strategies as st
from verdict_bars import wilson

from pytest_llmperf.core.verdicts.against_history import AcceptedValues, compare, confirm
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.core.verdicts.memory import Memory, PastSession, remember
from pytest_llmperf.core.verdicts.spread import spread_of

QUIET = (100.0, 100.6, 99.5, 100.2, 99.8, 100.4, 99.7, 100.1, 99.9, 100.3)


def times(*values, **fields):
    return [PastSession(value=value, **fields) for value in values]


def after(*sessions, floor=0.03):
    return remember([[*times(*QUIET), *sessions]], direction="lower", floor=floor)


# What enters


def test_sessions_within_the_limit_are_accepted():
    """And nothing is open."""
    memory = after(*times(101.0, 99.0, 102.0))
    assert memory.values.values[-3:] == (101.0, 99.0, 102.0)
    assert memory.open == ()


def test_a_suspicious_session_and_those_after_it_are_held_back():
    """5 % more time, then a good one: one good session is no proof yet, and none is accepted."""
    memory = after(*times(105.0, 102.5))
    assert memory.values.values == QUIET
    assert memory.values.open == (105.0, 102.5)


def test_what_is_held_back_is_accepted_once_the_sessions_since_refute_a_worsening():
    """All of it, the suspicious one too: else what is worse would be missing from the spread."""
    memory = after(*times(105.0, 100.1, 99.9, 100.0, 99.8))
    assert memory.open == ()
    assert memory.values.values == (*QUIET, 105.0, 100.1, 99.9, 100.0, 99.8) or memory.outlier


def test_a_failed_session_is_not_accepted_when_the_others_are():
    """A regression that was taken back: the sessions after it count, it does not."""
    failed = PastSession(value=112.0, failed=True)
    memory = after(failed, *times(100.0, 100.2, 99.9, 100.1))
    assert 112.0 not in memory.values.values
    assert memory.values.values[-4:] == (100.0, 100.2, 99.9, 100.1)


def test_a_failed_session_within_the_limit_holds_nothing_back():
    """Its test failed for something else."""
    memory = after(PastSession(value=100.0, failed=True), *times(100.2))
    assert memory.values.values == (*QUIET, 100.2)


def test_a_session_that_somebody_accepted_counts():
    """Also one that is worse than the limit."""
    memory = after(PastSession(value=105.0, accepted=True))
    assert memory.values.values == (*QUIET, 105.0)
    assert memory.open == ()


def test_an_accepted_level_starts_anew_and_keeps_the_spread():
    """What was open at the old level is not open at the new one."""
    memory = remember(
        [[*times(*QUIET), *times(112.0)], times(112.5, 112.1)], direction="lower", floor=0.03
    )
    assert memory.values == AcceptedValues(values=(112.5, 112.1), earlier=(QUIET,))


def test_the_first_eight_sessions_are_accepted_whatever_they_are():
    """Nothing says yet what sessions differ by."""
    values = (100.0, 110.0, 95.0, 104.0, 120.0, 99.0, 101.0, 93.0)
    assert remember([times(*values)], direction="lower", floor=0.03).values.values == values


@given(
    st.lists(st.floats(95.0, 110.0), min_size=8, max_size=40),
    st.sampled_from(["lower", "higher"]),
)
@settings(max_examples=50, deadline=None)
def test_every_session_is_accepted_or_held_back_and_in_order(values, direction):
    """None is lost but the oldest of more than thirty; the order stays."""
    memory = remember([times(*values)], direction=direction, floor=0.03)
    kept = [session.value for session in (*memory.accepted, *memory.open)]
    assert kept == values[-len(kept) :]
    assert len(memory.accepted) == min(30, len(values) - len(memory.open))


# Outliers


def test_one_session_far_from_all_the_others_is_left_out():
    """2x among ten of 0.4 %: without it a loss of 5 % is seen, with it nothing under 60 % is."""
    memory = remember([times(*QUIET[:4], 200.0, *QUIET[4:])], direction="lower", floor=0.03)
    assert memory.outlier == PastSession(value=200.0)
    assert memory.values.values == QUIET
    blind = AcceptedValues(values=(*QUIET, 200.0))
    assert compare(105.0, memory.values, direction="lower").suspected
    assert compare(105.0, blind, direction="lower").smallest_visible > 0.6


def test_a_session_that_somebody_put_back_is_no_outlier():
    """The way back."""
    memory = remember(
        [[*times(*QUIET), PastSession(value=200.0, accepted=True)]], direction="lower", floor=0.03
    )
    assert memory.outlier is None
    assert 200.0 in memory.values.values


def test_two_levels_have_no_outlier():
    """Two hosts 12 % apart: to leave one of them out would fail the other for ever."""
    values = [value * factor for value in QUIET for factor in (1.0, 1.12)]
    assert remember([times(*values[::-1])], direction="higher", floor=0.03).outlier is None


# The spread


def test_the_spread_of_alike_neighbours_is_wider_than_they_show():
    """AR(1) of 0.6, 30 sessions: the mean of ten differs by more than a third of one would."""
    draw, found = random.Random(1), []
    for _ in range(200):
        x, values = draw.gauss(0, 1), []
        for _ in range(30):
            x = 0.6 * x + 0.8 * draw.gauss(0, 1)
            values.append(math.exp(0.02 * x))
        found.append(spread_of([values]))
    assert sum(spread.value for spread in found) / 200 == pytest.approx(0.02, rel=0.06)
    assert sum(spread.autocorrelation for spread in found) / 200 == pytest.approx(0.6, abs=0.12)
    assert sum(spread.variance_of_mean(10) for spread in found) / 200 > 0.2


def test_independent_sessions_are_not_widened_much():
    """The mean of ten of thirty: between a tenth and a seventh of the variance of one."""
    draw = random.Random(2)
    found = [
        spread_of([[math.exp(0.02 * draw.gauss(0, 1)) for _ in range(30)]]) for _ in range(200)
    ]
    assert 0.1 <= sum(spread.variance_of_mean(10) for spread in found) / 200 < 0.143


# The fresh runs


def test_fresh_runs_of_a_noisy_machine_count_as_one_unless_it_was_calibrated():
    """At 6 % between sessions, three runs of one may share what the day did to the machine."""
    draw = random.Random(3)
    noisy = AcceptedValues(values=tuple(100 * math.exp(0.06 * draw.gauss(0, 1)) for _ in range(20)))
    first = compare(125.0, noisy, direction="lower")
    assert first.suspected
    fresh = [117.0, 119.0, 118.0]
    unknown = confirm(first, fresh, noisy)
    known = confirm(first, fresh, noisy, calibrated=first.spread)
    quiet_within = confirm(first, fresh, noisy, calibrated=0.005)
    assert known.again.p < unknown.again.p
    assert quiet_within.again.p == pytest.approx(unknown.again.p, rel=0.1)


# Over many sessions: `benchmarks/gate_bars.py` has the full form.


def found_in(stayed):
    """The whole 99 % interval of the share of histories in which the change was found."""
    return wilson(stayed.found, stayed.n)


def test_a_change_of_five_percent_that_stays_is_found():
    """Noise 2 %, 30 sessions: in 95 % of histories, the median within seven sessions."""
    stayed = gate_simulated.stays(Machine(0.02), 0.05, 80)
    assert stayed.found >= 0.95 * stayed.n
    assert stayed.median_session <= 7


def test_a_change_of_ten_percent_that_stays_is_found_at_once():
    """In the first session of half of the histories; the last one never passes."""
    stayed = gate_simulated.stays(Machine(0.02), 0.10, 80)
    assert stayed.found >= 0.98 * stayed.n
    assert stayed.median_session == 1
    assert stayed.last_passed == 0


@pytest.mark.nightly
def test_a_gate_that_forgets_loses_the_change():
    """Negative control: undecided sessions let into the accepted ones.

    The change becomes the level, and the bar of finding it is missed.
    """
    forgot = gate_simulated.stays(Machine(0.02), 0.05, 80, forgets=True)
    assert found_in(forgot)[1] < 0.95
    assert forgot.last_passed > 0.25 * forgot.n
    assert gate_simulated.stays(Machine(0.02), 0.05, 80).last_passed < 0.25 * forgot.n


@pytest.mark.parametrize("spread", [0.01, 0.02, 0.05])
def test_unchanged_sessions_do_not_fail(spread):
    """Of 1,800 independent sessions at most two."""
    assert sum(gate_simulated.fails_by_history(Machine(spread), 60)) <= 2


def test_alike_neighbours_do_not_fail():
    """Of 3,000 sessions with an autocorrelation of 0.5, at most one in 300."""
    assert sum(gate_simulated.fails_by_history(Machine(0.02, r=0.5), 100)) <= 10


@pytest.mark.parametrize("spread", [0.01, 0.02, 0.03, 0.05, 0.1, 0.2])
def test_ten_percent_worse_never_passes(spread):
    """PASS is evidence: at most 1 % of sessions, however much sessions differ."""
    seen = gate_simulated.first_outcomes(Machine(spread), 0.10, 300)
    assert seen[Outcome.PASS] <= 5


def test_to_pass_what_is_not_seen_would_pass_ten_percent():
    """Negative control: 'not worse than the limit' lets a quarter of them through at 10 %."""
    draw, passed = random.Random(4), 0
    for _ in range(300):
        values = tuple(math.exp(0.1 * draw.gauss(0, 1)) for _ in range(12))
        value = 1.1 * math.exp(0.1 * draw.gauss(0, 1))
        comparison = compare(value, AcceptedValues(values=values), direction="lower")
        passed += comparison.worse <= 0.03
    assert passed > 0.15 * 300


def test_a_memory_without_sessions_compares_nothing():
    """The first session of a series."""
    values = Memory(direction="lower", floor=0.03).values
    assert compare(1.0, values, direction="lower").outcome is Outcome.NOT_COMPARABLE
