"""What processes differ by: both spreads by hand, and intervals that hold the program."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from many_processes import SERIES, Program, coverage, no_spread_between
from noise import INDEPENDENT, NOISES

from pytest_llmperf.core.verdicts import processes, stats
from pytest_llmperf.core.verdicts.estimate import Estimate
from pytest_llmperf.core.verdicts.judge import Outcome, claims, decide, ratio
from pytest_llmperf.core.verdicts.processes import KnownSpread, Processes

SIZES = (4, 4, 4)
LEVELS = (100.0, 104.0, 96.0)
XS = tuple(level * (1 + error) for level in LEVELS for error in (-0.003, 0.003, -0.001, 0.001))
KNOWN = KnownSpread(spread=0.02, freedom=11, source="12 sessions")


def estimate(xs, *, pair=None, **more):
    """A throughput of these samples."""
    return Estimate.of_samples(
        "throughput", tuple(xs), "tok/s", direction="higher", pair=pair, processes=Processes(**more)
    )


def test_both_spreads_are_those_of_the_analysis_of_variance():
    """Levels 4 % apart, repetitions 0.2 % about them."""
    between, within = processes.components(XS, SIZES)
    assert between == pytest.approx(statistics.stdev(map(math.log, LEVELS)), rel=0.01)
    assert within == pytest.approx(math.sqrt(2 * (0.003**2 + 0.001**2) / 3), rel=0.01)


@pytest.mark.parametrize("sizes", [(10, 10, 10, 10), (2, 5, 9, 24)])
def test_spreads_are_unbiased_whatever_the_sizes(sizes):
    """Over 600 programs, the mean of both variances is the drawn one."""
    draw = random.Random(3)
    seen = []
    for _ in range(600):
        logs = []
        for size in sizes:
            level = draw.gauss(0, 0.02)
            logs += [level + draw.gauss(0, 0.01) for _ in range(size)]
        seen.append(processes.components([math.exp(log) for log in logs], sizes))
    assert statistics.fmean(c.between**2 for c in seen) == pytest.approx(0.02**2, rel=0.12)
    assert statistics.fmean(c.within**2 for c in seen) == pytest.approx(0.01**2, rel=0.05)


def test_one_process_has_no_spread_between():
    """It is not 0: it is not known."""
    assert processes.components(XS, ()) is None
    assert processes.components(XS, (12,)) is None
    assert processes.components((1.0, 2.0), (1, 1)) is None


def test_sizes_of_other_samples_are_refused():
    """A process that ran what is not there is a mistake of the caller."""
    with pytest.raises(ValueError, match="12 samples are not those of processes"):
        processes.split(XS, (4, 4))


def test_the_interval_of_three_processes_is_students_on_three_values():
    """By hand: two degrees of freedom, 9.925 standard errors."""
    low, high = processes.center_interval(XS, Processes(sizes=SIZES))
    logs = [math.log(level) for level in LEVELS]
    reach = 9.9248 * statistics.stdev(logs) / math.sqrt(3)
    center = statistics.fmean(logs)
    assert math.log(low) == pytest.approx(center - reach, abs=2e-4)
    assert math.log(high) == pytest.approx(center + reach, abs=2e-4)


def test_levels_that_agree_by_chance_leave_what_repetitions_vary_by():
    """Three processes of one level: the interval is not narrower than that of one process."""
    xs = [math.exp(0.01 * x) for x in (1, -1, 2, -2)] * 3
    low, high = processes.center_interval(xs, Processes(sizes=SIZES))
    assert math.log(high / low) / 2 > 2.5 * 0.015 / math.sqrt(12)


def test_equal_samples_leave_no_doubt():
    """Virtual time has none."""
    assert processes.center_interval([5.0] * 12, Processes(sizes=SIZES)) == (5.0, 5.0)


def test_without_processes_an_interval_is_what_it_was():
    """Nothing is said of them: order statistics of all samples."""
    assert processes.center_interval(XS) == stats.center_interval(XS)
    assert estimate(XS).low == stats.center_interval(XS)[0]


def test_a_known_spread_widens_the_interval_of_one_process():
    """11 degrees of freedom: 3.106 spreads to each side, and the repetitions' own as squares."""
    bare, widened = estimate(XS[:4]), estimate(XS[:4], known=KNOWN, unknown="one")
    own = math.log(bare.high / bare.value)
    expected = math.hypot(own, 3.1058 * 0.02)
    assert math.log(widened.high / widened.value) == pytest.approx(expected, rel=1e-3)


def test_percentiles_are_widened_too():
    """By what the medians of the processes differ by."""
    xs = [level for level in LEVELS for _ in range(60)]
    low, high = processes.widened(104.0, (103.0, 105.0), xs, Processes(sizes=(60, 60, 60)))
    assert low < 90
    assert high > 115


def test_a_pair_is_a_process_of_each_side():
    """Each side differs by 4 % from process to process, and the ratio of a block does not."""
    sizes = {"sizes": SIZES, "pair": "p"}
    quotient = ratio(estimate(XS, **sizes), estimate([2 * x for x in XS], **sizes))
    assert quotient.value == pytest.approx(0.5)
    assert quotient.high / quotient.low < 1.001
    apart = ratio(estimate(XS, **sizes), estimate([2 * x for x in XS], sizes=SIZES))
    assert apart.high / apart.low > 1.2


def test_the_known_spread_of_both_sides_is_in_the_ratio_of_one_pair():
    """Two processes differ by the root of two spreads."""
    one = {"known": KNOWN, "unknown": "one", "pair": "p"}
    quotient = ratio(estimate([100.0] * 10, **one), estimate([100.0] * 10, **one))
    assert math.log(quotient.high) == pytest.approx(3.1058 * 0.02 * math.sqrt(2), rel=1e-3)


def test_what_is_known_does_not_hold_where_three_times_as_much_is_seen():
    """Student's two degrees of freedom then, else those of both."""
    seen = estimate(XS, sizes=SIZES)
    trusted = estimate(XS, sizes=SIZES, known=KnownSpread(spread=0.04, freedom=20, source="s"))
    stale = estimate(XS, sizes=SIZES, known=KnownSpread(spread=0.002, freedom=20, source="s"))
    assert trusted.high - trusted.low < 0.5 * (seen.high - seen.low)
    assert (stale.low, stale.high) == (seen.low, seen.high)


# Claims


@pytest.mark.parametrize(
    ("bound", "outcome"),
    [(99.0, Outcome.UNDECIDED), (104.0, Outcome.UNDECIDED), (94.0, Outcome.PASS)],
)
def test_one_process_decides_nothing_within_5_percent(bound, outcome):
    """Neither PASS nor FAIL; farther away it decides, and says what it rests on."""
    finding = decide(">=", estimate([100.0, 100.2] * 6, unknown="the test holds it"), bound)
    assert finding.outcome is outcome
    assert processes.UNKNOWN in finding.detail
    assert ("the test holds it" in finding.detail) == (outcome is Outcome.UNDECIDED)
    assert decide(">=", estimate([100.0, 100.2] * 6), bound).outcome is not Outcome.UNDECIDED


def test_an_undecided_claim_is_false_where_the_session_is_strict():
    """As every other that is undecided."""
    with claims(strict=True):
        assert not (estimate([100.0] * 12, unknown="one") >= 99)


def test_several_processes_are_counted_in_the_message():
    """With how far apart they are, and how many more would decide."""
    finding = decide(">=", estimate(XS, sizes=SIZES), 95)
    assert "(12 samples, 3 processes, 8.3 % apart)" in finding.text
    assert "more processes would decide" in finding.detail


def test_what_is_known_is_in_the_message_with_its_source():
    """Of one process, that is."""
    finding = decide(">=", estimate(XS[:4], known=KNOWN, unknown="one"), 50)
    assert "one process; processes vary by 2.0 % (12 sessions)" in finding.text
    assert finding.outcome is Outcome.PASS


@pytest.mark.parametrize("unknown_side", [0, 1])
def test_a_ratio_rests_on_one_process_where_a_side_does(unknown_side):
    """Two runs that were not measured in turn."""
    sides = [estimate(XS, sizes=SIZES), estimate(XS, sizes=SIZES)]
    sides[unknown_side] = estimate([100.0] * 12, unknown="one")
    assert decide(">=", sides[0], 0.99 * sides[1]).outcome is Outcome.UNDECIDED
    assert (sides[0] / sides[1]).processes.is_unknown


# Coverage, by simulation; in full: benchmarks/interval_bars.py

RUNS = 120
ALLOWED = 6
"""Misses of 120 intervals that a coverage of 98 % exceeds with a chance of 1 %."""


@pytest.mark.parametrize("name", ["independent", "autocorrelated 0.5", "two modes"])
@pytest.mark.parametrize("sides", [1, 2], ids=["level", "ratio"])
def test_intervals_hold_the_program(name, sides):
    """Processes that differ by 1 %, repetitions by 0.5 %."""
    program = Program(noise=SERIES[name], repetitions=0.005, processes=0.01)
    assert RUNS - coverage([program] * sides, RUNS, seed=5).hits <= ALLOWED


@pytest.mark.parametrize("sides", [1, 2], ids=["level", "ratio"])
def test_without_the_spread_between_processes_intervals_do_not(sides):
    """The negative control: the spread between processes is taken for 0."""
    program = Program(repetitions=0.005, processes=0.01)
    with no_spread_between():
        blind = coverage([program] * sides, RUNS, seed=5)
    assert RUNS - blind.hits > 2 * ALLOWED


def test_a_known_spread_makes_the_interval_of_one_process_hold_its_program():
    """And without it, one process says nothing about others."""
    program = Program(repetitions=0.005, processes=0.01)
    told = Program(repetitions=0.005, processes=0.01, known=0.01)
    assert RUNS - coverage([told], RUNS, seed=5, one=True).hits <= ALLOWED
    assert coverage([program], RUNS, seed=5, one=True).hits < 0.7 * RUNS


@pytest.mark.parametrize("name", INDEPENDENT)
def test_other_shapes_of_noise_do_no_harm(name):
    """Heavy tails, skewed ones, and values far out."""
    median = statistics.median(NOISES[name](20_001, random.Random(1)))
    program = Program(
        noise=lambda n, draw: [x - median for x in NOISES[name](n, draw)],
        repetitions=0.02,
        processes=0.003,
        load_s=1.0,
    )
    assert 40 - coverage([program], 40, seed=5).hits <= 3
