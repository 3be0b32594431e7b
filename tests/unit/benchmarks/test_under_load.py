"""The small form of benchmarks/under_load.py: which pairs may count beside other programs."""

from __future__ import annotations

import random
from itertools import islice

import pytest
from under_load import (
    LIMIT,
    LOADS,
    Program,
    World,
    blocks,
    coverage,
    drop_marked,
    keep_alike,
    keep_all,
    none,
    steady,
    two_modes,
    verdicts,
)

RUNS = 150


def test_load_makes_blocks_slower_and_processes_differ():
    """What is simulated is there: half of the cores double the time, and each block is a draw."""
    draw = random.Random(0)
    world = World(load=steady, process_sd=0.03, noise_sd=0.0)
    times = [block(Program())[0] for block in islice(blocks(world, draw), 400)]
    assert sum(times) / len(times) == pytest.approx(2.0, rel=0.05)
    quiet = [
        block(Program())[0]
        for block in islice(blocks(World(load=none, process_sd=0.03, noise_sd=0.0), draw), 400)
    ]
    assert 0.02 < max(quiet) - 1 < 0.6
    assert len(set(quiet)) == len(quiet)


def test_dropping_what_is_marked_decides_nothing_beside_steady_load():
    assert verdicts(World(load=steady), Program(), drop_marked, RUNS) == {"INVALID": RUNS}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_pairs_that_are_hit_alike_fail_no_unchanged_program(load):
    for world in (World(load=load), World(load=load, two_modes=True, autocorrelation=0.5)):
        assert verdicts(world, Program(), keep_alike, RUNS)["FAIL"] == 0


def test_pairs_that_are_hit_alike_pass_few_slower_programs_and_find_large_changes():
    world = World(load=steady)
    assert verdicts(world, Program(time=1.05), keep_alike, 2 * RUNS)["PASS"] <= 8
    assert verdicts(world, Program(time=1.3), keep_alike, RUNS)["FAIL"] >= 0.9 * RUNS


def test_keeping_all_pairs_sees_less():
    """The control: where load hits the blocks unlike, its noise hides what there is to see."""
    world, slower = World(load=two_modes), Program(time=1.3)
    every = verdicts(world, slower, keep_all, RUNS)
    assert every["FAIL"] < 0.5 * RUNS


def test_a_ratio_of_unlike_programs_is_another_beside_load():
    """The control: why `compare` needs the option. Load hits one of the two harder."""
    world = World(load=steady)
    like, unlike = Program(time=0.7), Program(time=0.7, sensitivity=1.5)
    assert coverage(world, like, keep_alike, RUNS) >= 0.96
    assert coverage(world, unlike, keep_alike, RUNS) < 0.5


def test_a_quiet_machine_drops_nothing():
    assert drop_marked((0.0, LIMIT))
    assert verdicts(World(load=none), Program(), drop_marked, 50)["INVALID"] == 0
