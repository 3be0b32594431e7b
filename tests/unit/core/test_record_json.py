"""A record as a line of JSON."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from support.history_records import RECORDS, metric, record

from pytest_llmperf.core import record_json
from pytest_llmperf.core.record import SCHEMA_VERSION


@given(RECORDS)
def test_any_record_comes_back_as_it_was(made):
    """Encoding, decoding and encoding again gives the same line.

    It gives the same value too, where NaN allows to say so.
    """
    line = record_json.encode(made)
    back = record_json.decode(line)
    assert b"\n" not in line
    assert record_json.encode(back) == line
    assert repr(back) == repr(made)


def test_two_different_records_have_different_lines():
    """Negative control of the round trip: a change of one metric shows."""
    assert record_json.encode(record("a")) != record_json.encode(
        record("a", metrics=(metric(value=14.3),))
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_survive(value):
    """NaN and infinity come back as themselves, not as null."""
    back = record_json.decode(record_json.encode(record("a", samples={"x": (value,)})))
    assert repr(back.samples["x"]) == repr((value,))


def test_the_line_is_plain_json():
    """Other tools can read it."""
    assert json.loads(record_json.encode(record("a")))["strategy"] == "bf16"


def test_a_lone_surrogate_does_not_lose_the_record():
    """A text that UTF-8 cannot hold is written with a replacement."""
    assert record_json.decode(record_json.encode(record("a", label="x\ud800"))).label == "x?"


def test_a_newer_record_is_named_as_such():
    """A record of a newer schema is refused with its version, not misread."""
    line = record_json.encode(record("a", schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(
        record_json.NewerSchema, match=f"'a' has schema version {SCHEMA_VERSION + 1}.*Upgrade"
    ):
        record_json.decode(line)


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_half_a_line_is_a_value_error(cut):
    """A line that was cut off is never taken for a record."""
    with pytest.raises(ValueError, match=r"truncated|malformed"):
        record_json.decode(record_json.encode(record("a"))[:-cut])
