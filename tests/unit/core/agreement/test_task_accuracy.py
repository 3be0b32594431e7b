"""Task accuracy: exact intervals, recovery, and gates.

By simulation, a gate's false alarms and misses are what it says.
"""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pytest_llmperf.core.agreement import accuracy_power
from pytest_llmperf.core.agreement.accuracy_gate import accuracy_gate
from pytest_llmperf.core.agreement.accuracy_power import (
    PairedItems,
    least_failing_lost,
    most_failing_won,
)
from pytest_llmperf.core.agreement.task_accuracy import accuracy, answer_spread, recovery
from pytest_llmperf.core.verdicts.distributions import binomial_cdf
from pytest_llmperf.core.verdicts.judge import Outcome, claims
from pytest_llmperf.errors import UsageError


def seeded(seed):
    return random.Random(seed)


def answers(*, both=0, lost=0, won=0, neither=0):
    """Candidate's and reference's answers to as many items of each sort."""
    ours = [True] * both + [False] * lost + [True] * won + [False] * neither
    theirs = [True] * both + [True] * lost + [False] * won + [False] * neither
    return ours, theirs


def drawn(draw, n, rate, drop, spread):
    """Draw answers of a pair that differ in a share `spread` of the items.

    `drop` of them are net to the candidate's loss.
    """
    lost, won = (spread + drop) / 2, (spread - drop) / 2
    sorts = draw.choices(
        ("lost", "won", "both", "neither"), (lost, won, rate - lost, 1 - rate - won), k=n
    )
    return [s in ("won", "both") for s in sorts], [s in ("lost", "both") for s in sorts]


def outcomes(gate, *, rate, drop, spread, runs=400):
    draw = seeded(7)
    found = [gate.judge(*drawn(draw, gate.n, rate, drop, spread)).outcome for _ in range(runs)]
    return {outcome: found.count(outcome) / runs for outcome in Outcome}


def three_deviations(chance, runs):
    return 3 * math.sqrt(chance * (1 - chance) / runs)


# Accuracy


def test_an_accuracy_has_the_exact_interval():
    """Clopper and Pearson's, as tabled: 8 of 10 at 99 % is 0.3518 to 0.9782 ...

    0.9999 of a clean sheet is not 1.
    """
    found = accuracy([True] * 8 + [False] * 2, subject="int8")
    assert (float(found), found.n, found.unit) == (0.8, 10, "1")
    assert (found.low, found.high) == (
        pytest.approx(0.3518, abs=1e-4),
        pytest.approx(0.9891, abs=1e-4),
    )
    assert accuracy([True] * 10).high == 1
    assert accuracy([True] * 10).low == pytest.approx(0.005 ** (1 / 10))
    assert accuracy([False] * 10).low == 0


def test_an_accuracy_is_claimed_like_every_estimate():
    """Three outcomes, and the message counts items."""
    with claims() as kept:
        assert accuracy([True] * 95 + [False] * 5) >= 0.8
        assert not accuracy([True] * 50 + [False] * 50) >= 0.8
        assert accuracy([True] * 8 + [False] * 2) >= 0.9
    assert [finding.outcome for finding in kept] == [Outcome.PASS, Outcome.FAIL, Outcome.UNDECIDED]
    assert "(10 items)" in kept[2].text
    assert "more items would decide" in kept[2].detail


def test_the_interval_of_an_accuracy_covers_what_it_says():
    """At least 99 % of 1,500 simulated ones hold the true share."""
    draw = seeded(1)
    for rate in (0.02, 0.3, 0.9):
        found = [accuracy([draw.random() < rate for _ in range(40)]) for _ in range(500)]
        assert sum(each.low <= rate <= each.high for each in found) / 500 >= 0.985


# Recovery


def test_recovery_is_the_ratio_of_the_two_accuracies():
    """57 of 60 right answers are 95 % recovery.

    The interval is narrower than that of unpaired sides.
    """
    ours, theirs = answers(both=55, lost=5, won=2, neither=38)
    found = recovery(ours, theirs, subject="nf4", against="fp32")
    assert float(found) == pytest.approx(57 / 60)
    assert found.low < 57 / 60 < found.high
    alone = recovery(ours, 0.6)
    assert float(alone) == pytest.approx(57 / 60)
    assert found.high - found.low < alone.high - alone.low
    assert found.title == "task.recovery of nf4"


def test_a_candidate_that_answers_nothing_recovers_nothing():
    """The value is 0, and the interval says what it may be."""
    ours, theirs = answers(lost=30, neither=10)
    found = recovery(ours, theirs)
    assert (float(found), found.low) == (0, 0)
    assert 0 < found.high < 0.5
    with claims():
        assert not found >= 0.95


@pytest.mark.parametrize(
    ("rate", "drop", "spread"),
    [(0.6, 0.0, 0.1), (0.6, 0.03, 0.1), (0.9, 0.05, 0.07), (0.3, 0.0, 0.02)],
)
@pytest.mark.parametrize("n", [60, 400])
def test_the_interval_of_a_recovery_covers_what_it_says(n, rate, drop, spread):
    """At least 98 % of 600 simulated ones hold the true ratio, where 99 % is claimed."""
    draw = seeded(2)
    found = [recovery(*drawn(draw, n, rate, drop, spread)) for _ in range(600)]
    covered = sum(each.low <= (rate - drop) / rate <= each.high for each in found) / 600
    assert covered >= 0.98


def test_equal_answers_still_have_an_interval():
    """A bootstrap would say exactly 1 of any number of items.

    There is nothing to draw that differs.
    """
    few, many = (recovery(*answers(both=k, neither=k)) for k in (10, 1000))
    assert few.low < 0.9 < many.low < 1 < many.high < few.high


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_every_recovery_lies_in_its_interval(pairs):
    """For any answers; and a swap of the sides inverts it."""
    ours, theirs = [c for c, _ in pairs], [r for _, r in pairs]
    if not any(theirs):
        with pytest.raises(UsageError, match="answers none of"):
            recovery(ours, theirs)
        return
    found = recovery(ours, theirs)
    assert 0 <= found.low <= float(found) <= found.high < math.inf
    if any(ours):
        back = recovery(theirs, ours)
        assert (1 / back.high, 1 / back.low) == (
            pytest.approx(found.low),
            pytest.approx(found.high),
        )


# Gates


@pytest.mark.parametrize(
    ("n", "drop", "spread"), [(400, 0.06, 0.1), (1000, 0.05, 0.15), (250, 0.05, 0.05)]
)
def test_a_paired_gate_alarms_and_misses_as_rarely_as_it_says(n, drop, spread):
    """Equal models fail in at most alpha of the runs.

    Such a drop is found in 1 - beta of them, within sampling error.
    """
    gate = accuracy_gate(n, drop, spread=spread)
    assert gate.smallest_drop <= drop
    equal = outcomes(gate, rate=0.6, drop=0, spread=spread)
    assert equal[Outcome.FAIL] <= 0.01 + three_deviations(0.01, 400)
    assert equal[Outcome.UNDECIDED] <= 0.01 + three_deviations(0.01, 400)
    dropped = outcomes(gate, rate=0.6, drop=gate.smallest_drop, spread=spread)
    assert dropped[Outcome.FAIL] >= 0.9 - three_deviations(0.9, 400)


def test_a_gate_on_a_stored_number_alarms_and_misses_as_rarely_as_it_says():
    """The candidate's answers alone are drawn."""
    gate, draw, runs = accuracy_gate(500, 0.1, reference=0.62), seeded(3), 1000

    def failed(rate):
        return (
            sum(not gate.judge([draw.random() < rate for _ in range(500)]) for _ in range(runs))
            / runs
        )

    assert failed(0.62) <= 0.01 + three_deviations(0.01, runs)
    assert failed(0.62 - gate.smallest_drop) >= 0.9 - three_deviations(0.9, runs)


def test_power_is_that_of_the_exact_test():
    """By hand, of 5 items that all differ only five losses (1/32) are below alpha = 0.05.

    A sure loser is sure to fail.
    """
    assert PairedItems(1.0, 0.05).power(5, 1e-9) == pytest.approx(1 / 32)
    assert PairedItems(1.0, 0.05).power(5, 1.0) == pytest.approx(1)
    assert PairedItems(1.0, 0.05).power(4, 1.0) == 0


def test_power_over_every_few_items_is_that_over_all(monkeypatch):
    """The sum that leaves some out is within a thousandth of the whole one."""
    short = PairedItems(0.3, 0.01).power(20_000, 0.012)
    monkeypatch.setattr(accuracy_power, "_MAX_TERMS", 10**6)
    assert short == pytest.approx(PairedItems(0.3, 0.01).power(20_000, 0.012), abs=1e-3)
    assert 0.3 < short < 0.99


@given(st.integers(0, 300), st.floats(0.001, 0.2), st.integers(-1, 300))
def test_the_critical_number_is_found_from_any_guess(m, alpha, guess):
    """The largest whose chance is at most alpha."""
    won = most_failing_won(m, alpha, min(guess, m))
    assert won == -1 or binomial_cdf(won, m, 0.5) <= alpha
    assert binomial_cdf(won + 1, m, 0.5) > alpha
    assert m - won == least_failing_lost(m, alpha)


def test_a_gate_that_its_items_cannot_support_is_refused_with_the_number_it_needs():
    """The smallest drop they can show, and a number of items that is then accepted."""
    with pytest.raises(
        UsageError,
        match=r"100 items cannot show a drop of 2\.0 %: .*It would take about (\d+) items",
    ) as caught:
        accuracy_gate(100, 0.02, spread=0.1)
    needed = int(str(caught.value).split("about ")[1].split()[0])
    assert 2000 < needed < 5000
    assert accuracy_gate(needed, 0.02, spread=0.1).smallest_drop <= 0.02
    with pytest.raises(UsageError, match="they can show no drop at all"):
        accuracy_gate(3, 0.5, spread=0.5)
    with pytest.raises(UsageError, match=r"more than 100000 items"):
        accuracy_gate(100, 0.0001, spread=0.1)


# Shrinking would plan gates for minutes.
@settings(max_examples=20, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    st.integers(20, 400),
    st.floats(0.05, 0.5),
    st.floats(0.3, 1),
    st.floats(0.001, 0.1),
    st.floats(0.05, 0.4),
)
def test_a_gate_is_accepted_exactly_where_its_power_suffices(n, spread, part, alpha, beta):
    """And the number named by a refusal suffices."""
    drop = part * spread
    try:
        gate = accuracy_gate(n, drop, spread=spread, alpha=alpha, beta=beta)
    except UsageError as error:
        text = str(error).split("It would take ")[1]
        if text.startswith("about"):
            assert (
                accuracy_gate(
                    int(text.split()[1]), drop, spread=spread, alpha=alpha, beta=beta
                ).smallest_drop
                <= drop
            )
    else:
        assert gate.smallest_drop <= drop
        assert gate.threshold > 0


def test_a_worse_candidate_fails_an_equal_one_passes_and_a_better_one_too():
    """The negative control is 40 lost items of 400.

    The finding is kept among the claims of the test.
    """
    gate = accuracy_gate(400, 0.06, spread=0.1)
    with claims() as kept:
        assert not gate.judge(*answers(both=200, lost=40, neither=160), subject="nf4")
        assert gate.judge(*answers(both=220, lost=20, won=20, neither=140))
        assert gate.judge(*answers(both=200, won=40, neither=160))
    assert [finding.outcome for finding in kept] == [Outcome.FAIL, Outcome.PASS, Outcome.PASS]
    assert (
        kept[0].text
        == "accuracy of nf4 is 50.0 %, the reference's 60.0 %, claimed to be no worse  (400 items)"
    )
    assert "40 items lost, 0 won; smallest visible drop" in kept[0].detail


def test_models_that_differ_more_than_expected_leave_it_undecided():
    """With four times the spread the drop could hide.

    The message says how many more items would do.
    """
    found = accuracy_gate(400, 0.06, spread=0.1).judge(
        *answers(both=160, lost=85, won=75, neither=80)
    )
    assert found.outcome is Outcome.UNDECIDED
    assert found.more_samples > 500
    assert f"about {found.more_samples} more would decide" in found.detail


def test_the_spread_is_the_share_of_items_that_one_side_alone_answers():
    assert answer_spread(*answers(both=5, lost=2, won=1, neither=2)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy([]), "no items"),
        (lambda: accuracy([True, 2]), "2 is neither"),
        (lambda: accuracy(["yes"]), "'yes' is neither"),
        (lambda: recovery([True], [True, False]), "2 items were answered, 1 are expected"),
        (lambda: recovery([True], 0.0), "the reference's accuracy is 0.0"),
        (lambda: recovery([True], 61.5), "at most 1 is needed"),
        (lambda: accuracy_gate(0, 0.1, spread=0.2), "at least 1"),
        (lambda: accuracy_gate(100, 0.1), "either spread="),
        (lambda: accuracy_gate(100, 0.1, spread=0.2, reference=0.5), "either spread="),
        (lambda: accuracy_gate(100, 0.3, spread=0.2), "no drop can be larger"),
        (lambda: accuracy_gate(100, 2, spread=0.2), "drop is 2"),
        (lambda: accuracy_gate(100, 0.1, spread=0.2, alpha=0), "alpha is 0"),
        (lambda: accuracy_gate(400, 0.1, spread=0.2).judge([True] * 400), "give both sides'"),
        (
            lambda: accuracy_gate(400, 0.2, reference=0.6).judge([True] * 400, [True] * 400),
            "answers alone",
        ),
        (
            lambda: accuracy_gate(400, 0.1, spread=0.2).judge([True] * 3, [True] * 3),
            "3 items were answered, 400 are expected",
        ),
    ],
)
def test_what_cannot_be_used_is_named(call, message):
    with pytest.raises(UsageError, match=message):
        call()
