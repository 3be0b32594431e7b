"""What processes of a pair cost and differ by, and how many repetitions each should give."""

from __future__ import annotations

import math
import random

import pytest
from msgspec.structs import replace

from pytest_llmperf.core.verdicts.loads import (
    Load,
    described,
    repetitions_per_load,
    worthwhile_repetitions,
)

LOAD = Load(fresh=True, ready_s=80.0, sampled_s=20.0, repetitions=10, within=0.01)


@pytest.mark.parametrize(
    ("load_s", "repetition_s", "within", "between", "repetitions"),
    [
        (80.0, 0.2, 0.01, 0.01, 20.0),
        (80.0, 0.2, 0.01, 0.02, 10.0),
        (2.5, 0.4, 0.021, 0.061, 1.0),
        (80.0, 0.2, 0.01, 0.0, math.inf),
        (80.0, 0.2, 0.0, 0.01, 1.0),
        (0.0, 0.2, 0.01, 0.01, 1.0),
    ],
)
def test_repetitions_are_those_of_the_published_formula(
    load_s, repetition_s, within, between, repetitions
):
    """By hand; one at least, and no end where processes do not differ."""
    found = repetitions_per_load(load_s, repetition_s, within=within, between=between)
    assert found == pytest.approx(repetitions)


def test_before_the_third_pair_processes_are_taken_to_differ_as_repetitions_do():
    """80 s by 2 s: the root of 40, whatever two pairs show."""
    assert worthwhile_repetitions([LOAD], []) == pytest.approx(math.sqrt(40))
    assert worthwhile_repetitions([LOAD] * 4, [0.5, -0.5]) == pytest.approx(math.sqrt(40))


def test_what_processes_differ_by_is_what_repetitions_leave_of_the_pairs_spread():
    """Simulated: processes 2 % apart, ten repetitions of 1 % each: half of the root of 40."""
    draw = random.Random(1)
    ratios = [
        sum(
            sign * (0.02 * draw.gauss(0, 1) + 0.01 / math.sqrt(10) * draw.gauss(0, 1))
            for sign in (1, -1)
        )
        for _ in range(4000)
    ]
    assert worthwhile_repetitions([LOAD], ratios) == pytest.approx(math.sqrt(40) / 2, rel=0.05)
    assert worthwhile_repetitions([LOAD], [0.0, 0.0, 0.0]) == math.inf


def test_processes_are_described_with_how_far_apart_they_were_on_their_own_side():
    """A side that is 10 % slower is no spread; one of three processes that is, is."""
    loads = [LOAD] * 6
    found = described(loads, [(100.0, 90.0)] * 3)
    assert (found.processes, found.apart, found.repetitions) == (6, 0.0, 10.0)
    assert found.ready_share == pytest.approx(0.8)
    apart = described(loads, [(100.0, 90.0), (110.0, 90.0), (100.0, 90.0)]).apart
    assert apart == pytest.approx(math.log(1.1) / math.sqrt(3) / math.sqrt(2))


def test_one_process_a_side_has_no_spread():
    """However many pairs it gave."""
    found = described([replace(LOAD, fresh=False)] * 12, [(100.0, 90.0)] * 6)
    assert (found.fresh, found.processes, found.apart) == (False, 2, None)
