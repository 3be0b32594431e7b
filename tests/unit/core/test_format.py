"""Numbers as text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.core.format import (
    format_duration,
    format_estimate,
    format_interval,
    format_number,
    format_percent,
    format_value,
)

POSITIVE = st.floats(1e-12, 1e15)
UNITS = st.sampled_from(["s", "B", "bytes", "J", "tok/s", "1", "x"])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0831, "s", "83.1 ms"),
        (0.9996, "s", "1.00 s"),  # rounding crosses the prefix
        (0.00052, "s", "520 µs"),
        (612e6, "B", "612 MB"),
        (13.92e9, "B", "13.9 GB"),
        (999_999, "bytes", "1.00 MB"),
        (5, "B", "5 B"),
        (0, "B", "0 B"),
        (14.23, "tok/s", "14.2 tok/s"),
        (18348.4, "tok/s", "18348 tok/s"),
        (0.412, "1", "41.2 %"),
        (1.084, "x", "1.08x"),
        (0.012, "J", "12.0 mJ"),
        (float("nan"), "s", "nan s"),
        (3.0, "requests", "3.00 requests"),
    ],
)
def test_a_value_has_three_digits_and_its_unit(value, unit, text):
    assert format_value(value, unit) == text


@given(POSITIVE, st.integers(2, 5))
def test_a_number_is_rounded_to_its_digits_and_never_further(value, digits):
    assert float(format_number(value, digits)) == pytest.approx(
        value, rel=0.51 * 10 ** (1 - digits)
    )


@given(POSITIVE, UNITS)
def test_a_value_is_a_number_and_a_unit_and_short(value, unit):
    text = format_value(value, unit)
    assert re.fullmatch(r"[0-9.e-]+( [a-zA-Zµ%/]+|x)", text)
    assert len(text) <= 16


@given(st.floats(0, 1, exclude_max=True))
def test_a_share_below_one_never_reads_100_percent(share):
    assert format_percent(share) != "100 %"
    assert format_percent(share, 2) != "100 %"


def test_a_full_share_reads_100_percent():
    assert format_percent(1.0) == "100 %"


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (14.2, 14.05, 14.35, "±1.1 %"),
        (100.0, 100.0, 100.0, "±0 %"),
        (100.0, 99.99, 100.05, "±0.050 %"),  # lopsided, but by less than anybody cares for
        (11.3, 11.1, 11.9, "[11.1, 11.9] tok/s"),
        (0.0, -1.0, 1.0, "[-1.00, 1.00] tok/s"),
        (11.3, None, None, ""),
    ],
)
def test_an_interval_is_relative_unless_it_is_lopsided(value, low, high, text):
    assert format_interval(value, low, high, "tok/s") == text


@given(POSITIVE, st.floats(0, 0.9), st.floats(0, 0.9))
def test_an_interval_with_one_sign_covers_both_ends(value, below, above):
    text = format_interval(value, value * (1 - below), value * (1 + above))
    if text.startswith("±"):
        assert float(text[1:-2]) >= 100 * max(below, above) * 0.94 - 1e-3  # two digits


def test_the_ends_of_an_interval_share_one_unit():
    assert format_interval(0.9, 0.85, 1.2, "s") == "[0.850, 1.20] s"
    assert format_estimate(0.0831, 0.0830, 0.0850, "s") == "83.1 ms [83.0, 85.0] ms"
    assert format_interval(0.9, 0.85, 0.91, "1") == "[85.0, 91.0] %"
    assert format_interval(1.1, 1.05, 1.11, "x") == "[1.05, 1.11]x"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.25, "250 ms"),
        (6.4, "6 s"),
        (119.4, "119 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_a_duration_is_for_people(seconds, text):
    assert format_duration(seconds) == text
