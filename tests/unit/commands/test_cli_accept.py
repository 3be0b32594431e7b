"""`llmperf accept`: one reviewed line a change that was meant."""

from __future__ import annotations

import pytest
from support.command_line import llmperf

from pytest_llmperf.history import accept


def test_accept_adds_one_line_that_says_who_why_and_from_which_record(measured):
    """The newest record of the series by default.

    The file is for review, and reading it gives the same back.
    """
    result = llmperf("accept", "test_pays", "--reason", "a larger model", "--who", "me")
    assert "record r1" in result.stdout
    (line,) = accept.read(measured)
    assert (line.record, line.who, line.why) == ("r1", "me", "a larger model")
    llmperf("accept", line.series, "--reason", "again", "--record", "r3")
    assert [each.record for each in accept.read(measured)] == ["r1", "r3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("test_", "--reason", "x"), "2 series match 'test_'"),
        (("nothing", "--reason", "x"), "no series matches 'nothing'"),
        (("test_pays", "--reason", " "), "--reason"),
        (("test_pays", "--reason", "x", "--who", ""), "--who"),
        (("test_pays", "--reason", "x", "--record", "zzz"), "no record 'zzz'"),
        (("--include", "zzz", "--reason", "x"), "no record of"),
        (("--include", "r", "--reason", "x"), "records of"),
        (("test_pays", "--include", "r1", "--reason", "x"), "not SERIES and --include"),
    ],
)
def test_accept_refuses_what_names_no_record_or_no_reason(measured, arguments, message):
    """And writes nothing."""
    assert message in llmperf("accept", *arguments, code=1).output
    assert accept.read(measured) == ()


def test_include_accepts_a_session_and_leaves_the_level(measured):
    """The line says so; lines of levels stay as an older version writes and reads them."""
    result = llmperf("accept", "--include", "r1", "--reason", "a power cut", "--who", "me")
    assert "record r1" in result.stdout
    (line,) = accept.read(measured)
    assert (line.record, line.level) == ("r1", False)
    assert accept.levels([line], line.series) == []
    llmperf("accept", "test_pays", "--reason", "wanted")
    included, level = (measured / accept.FILE).read_text().splitlines()
    assert '"level":false' in included
    assert "level" not in level
    assert accept.read(measured)[1].level


def test_accept_leaves_earlier_lines_as_they_are(measured):
    """Also where the last one lacks its end."""
    llmperf("accept", "test_pays", "--reason", "one")
    path = measured / accept.FILE
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    llmperf("accept", "test_pays", "--reason", "two")
    assert [each.why for each in accept.read(measured)] == ["one", "two"]
