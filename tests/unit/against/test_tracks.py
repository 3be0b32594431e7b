"""What a track stores of its pairs: an interval that holds the ratio of two versions."""

from __future__ import annotations

import math
import random

from msgspec.structs import replace
from support.history_records import metric, record

from pytest_llmperf.against.tracks import track
from pytest_llmperf.core.change import stored_change
from pytest_llmperf.core.verdicts.loads import Load
from pytest_llmperf.report import summary

APART = 0.02
"""Standard deviation of the logs of processes of one version."""

COMPARISONS = 120
ALLOWED = 6
"""Misses of 120 intervals that a coverage of 98 % exceeds with a chance of 1 %."""


def stored(draw, *, fresh, spread):
    """The stored change of 12 pairs of two equal versions; of one process a side unless fresh."""
    run = record("a", metrics=(metric(value=100.0),))
    one = track(0, run, "throughput", limit=0.03, counted=False, family=1, process_spread=spread)
    load = Load(fresh=fresh, ready_s=1.0, sampled_s=1.0, repetitions=10, within=0.005)
    levels = [APART * draw.gauss(0, 1) for _ in range(2)]
    for _ in range(12):
        if fresh:
            levels = [APART * draw.gauss(0, 1) for _ in range(2)]
        base, new = (100 * math.exp(level + 0.005 * draw.gauss(0, 1)) for level in levels)
        one.add(base, new, "", loads=(load, load))
    return stored_change(run, "throughput", one.summary())


def hits(**how):
    """How many intervals of equal versions hold 1."""
    draw = random.Random(3)
    changes = [stored(draw, **how) for _ in range(COMPARISONS)]
    return sum(change.low <= 1 <= change.high for change in changes)


def test_the_interval_of_fresh_processes_holds_the_ratio_of_two_versions():
    assert COMPARISONS - hits(fresh=True, spread=None) <= ALLOWED


def test_a_known_spread_makes_that_of_two_processes_hold_it():
    """Negative control: with a spread between processes of 0, most intervals miss it."""
    assert COMPARISONS - hits(fresh=False, spread=APART) <= ALLOWED
    assert hits(fresh=False, spread=0.0) < 0.4 * COMPARISONS


def test_a_comparison_says_what_it_took(compared):
    """In the record, and in the time of the run and of its test."""
    run, _, _, _ = compared("seed=1", "seed=2")
    assert 0 < run.extra["against"]["took_s"] < 60
    long = replace(run, extra={"took_s": 20.0, "against": {"took_s": 70.0}})
    assert summary.took(long) == "90 s"
    sides = [replace(long, id=side, paired_with="p") for side in "ab"]
    assert summary.took_of_test([*sides, replace(long, id="c")], run.test) == "3 min 0 s"
    alone = replace(run, extra={"took_s": 0.4})
    assert (summary.took(alone), summary.took_of_test([alone], run.test)) == ("<1 s", "<1 s")


def test_two_processes_of_unknown_spread_bound_nothing():
    """The ratio is stored without ends."""
    change = stored(random.Random(3), fresh=False, spread=None)
    assert change.ratio is not None
    assert (change.low, change.high) == (None, None)
