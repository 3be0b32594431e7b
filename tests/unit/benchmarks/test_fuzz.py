"""The small form of `benchmarks/fuzz.py`: inputs of every kind raise errors of ours alone."""

from __future__ import annotations

import random

import fuzz


def test_every_kind_of_input_is_taken_or_refused_by_an_error_of_ours():
    """The long form has a hundred thousand inputs."""
    chosen = fuzz.fuzz(1000, seed=7)
    assert not {target.name: target.faults for target in chosen if target.faults}
    assert len(chosen) > 20
    assert sum(target.refused for target in chosen) > 300


def test_an_exception_of_another_kind_is_seen(tmp_path):
    """The check above can fail."""
    target = fuzz.Target("numbers", lambda data, _: int(data), [b"1", b"2"])
    fuzz._fuzz_one(target, 200, random.Random(1), tmp_path)
    assert any(place.startswith("ValueError") for place in target.faults)
