"""The benchmarks' own arithmetic: pairs in drawn order, and a bar met, missed or undecided."""

from __future__ import annotations

import pytest
from pairs import finding, interleave, verdict


def test_each_pair_holds_one_value_of_each_side():
    """Whichever ran first, the first value is that of the first function.

    Warm-up pairs are left out.
    """
    assert set(interleave(lambda: 1.0, lambda: 2.0, 20, warm_up=3)) == {(1.0, 2.0)}


def test_the_order_inside_pairs_changes():
    """Neither side always runs first, so that drift favours neither."""
    called: list[str] = []
    interleave(lambda: called.append("a") or 1.0, lambda: called.append("b") or 1.0, 20, warm_up=0)
    assert {tuple(called[i : i + 2]) for i in range(0, 40, 2)} == {("a", "b"), ("b", "a")}


@pytest.mark.parametrize(
    ("low", "high", "met"),
    [
        (0.98, 1.02, "yes"),
        (0.90, 0.95, "no"),
        (1.10, 1.20, "no"),
        (0.90, 1.02, "undecided"),
        (None, None, "undecided"),
    ],
)
def test_a_bar_is_met_by_the_whole_interval(low, high, met):
    """A median inside the bar is not enough."""
    assert verdict(low, high, (0.97, 1.03)) == met


def test_noise_is_undecided_not_met():
    """Values that scatter around the bar decide nothing, whatever their median."""
    values = [1.0 + 0.5 * (-1) ** i for i in range(20)]
    assert finding("x", values, unit="x", bar="within 3 %", within=(0.97, 1.03)).met == "undecided"
