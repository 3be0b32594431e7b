"""A metric before and after, as the record of a comparison side by side keeps it, and its cells."""

from __future__ import annotations

import math

import pytest
from support.history_records import record

from pytest_llmperf.core.change import ratio_fields, stored_changes
from pytest_llmperf.core.verdicts.stats import LogRatio
from pytest_llmperf.report.changes import interval_text, labelled_test, number_cells

PAIRS = [[100.0, 90.0]] * 6


def change(**summary):
    """The change that is read from a metric's summary."""
    values = {"outcome": "FAIL", "limit": 0.03, "unit": "tok/s", "direction": "higher"}
    metrics = {"throughput": {**values, "reason": "", **summary}}
    (read,) = stored_changes(record("a", label="first", extra={"against": {"metrics": metrics}}))
    return read


def test_pairs_have_medians_a_ratio_and_its_interval():
    """And say how many they are."""
    read = change(pairs=PAIRS, ratio=[0.9, 0.89, 0.91])
    assert (read.before, read.after, read.how, read.n_after) == (
        100.0,
        90.0,
        "6 pairs, interleaved",
        6,
    )
    assert number_cells(read) == ("100 tok/s", "90.0 tok/s", "0.900x", "[0.890, 0.910]")
    assert labelled_test(read).endswith("[bf16] (first)")


def test_processes_of_the_pairs_are_said_with_how_far_apart_they_were():
    """And so is it where all pairs are of one process a side."""
    processes = {"fresh": True, "processes": 12, "apart": 0.0083}
    read = change(pairs=PAIRS, ratio=[0.9, 0.89, 0.91], processes=processes)
    assert read.how == "6 pairs, 12 processes 0.83 % apart"
    read = change(pairs=PAIRS[:1], ratio=[0.9, 0.0, "inf"], processes={**processes, "apart": None})
    assert read.how == "1 pair, 12 processes"
    processes = {"fresh": False, "processes": 2, "apart": None}
    read = change(pairs=PAIRS, ratio=[0.9, 0.89, 0.91], processes=processes)
    assert read.how == "6 pairs, all of one process a side"


def test_one_pair_has_no_interval():
    """Its ends are 0 and infinite, also where JSON made a text of that."""
    for high in (math.inf, "inf"):
        read = change(pairs=PAIRS[:1], ratio=[0.9, 0.0, high])
        assert (read.ratio, read.low, read.high, read.how) == (
            0.9,
            None,
            None,
            "1 pair, interleaved",
        )


def test_a_counted_metric_has_an_exact_ratio():
    """One pair, and no interval of it."""
    read = change(pairs=[[100, 102]], ratio=None)
    assert (read.how, read.ratio, interval_text(read.low, read.high)) == ("counted", 1.02, "")


def test_a_counted_metric_that_was_zero_has_no_ratio():
    """Nothing is relative to zero; the values are there."""
    read = change(pairs=[[0, 102]], ratio=None)
    assert (read.how, read.ratio, read.after) == ("counted", None, 102)


def test_what_was_not_compared_has_its_reason_and_dashes():
    """Never a ratio."""
    read = change(outcome="NOT COMPARABLE", reason="the base has no such test", pairs=[])
    assert (read.how, read.reason) == ("", "the base has no such test")
    assert set(number_cells(read)) == {"–"}  # noqa: RUF001


def test_a_record_that_was_not_measured_side_by_side_has_no_change():
    """Nor one whose extra is something else."""
    assert stored_changes(record("a")) == []
    assert stored_changes(record("a", extra={"against": "main"})) == []


def test_an_infinite_end_leaves_the_interval_out():
    """The ratio stays."""
    assert ratio_fields(LogRatio(0.0, -math.inf, math.inf, 1)) == {"ratio": 1.0}
    bounded = ratio_fields(LogRatio(0.0, math.log(0.5), math.log(2.0), 9))
    assert bounded == pytest.approx({"ratio": 1.0, "low": 0.5, "high": 2.0})
