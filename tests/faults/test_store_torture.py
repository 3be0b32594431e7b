"""The small form of `benchmarks/store_torture.py`: killed writers lose and double nothing."""

from __future__ import annotations

import store_torture


def test_writers_that_are_killed_lose_and_double_nothing(tmp_path):
    """The long form has eight writers of a thousand runs, and sixty kills."""
    counts = store_torture.torture(tmp_path, store_torture.SQLITE, writers=2, each=25, kills=2)
    assert counts.sound, counts
    assert (counts.acknowledged, counts.kills) == (50, 2)


def test_an_outcome_that_is_left_out_is_counted(tmp_path):
    """The check above can fail."""
    counts = store_torture.torture(
        tmp_path, store_torture.SQLITE, writers=1, each=20, kills=0, forget=10
    )
    assert counts.without_outcome == 2
    assert not counts.sound
