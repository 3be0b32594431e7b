"""Tests that no lane runs: what a lane is, and how lanes are put together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.commands.auditing import NOT_COLLECTED, Lane, compared, lanes_of
from pytest_llmperf.errors import UsageError


def test_a_lane_is_a_name_the_gpus_of_its_machine_and_pytests_arguments():
    lines = [
        "laptop: -m 'not nightly' tests/unit",
        "nightly: [2x141GB:NVIDIA H200:9.0] --llmperf-gpus=2",
        "all:",
    ]
    expected = (
        Lane(name="laptop", arguments=("-m", "not nightly", "tests/unit")),
        Lane(name="nightly", arguments=("--llmperf-gpus=2",), gpus="2x141GB:NVIDIA H200:9.0"),
        Lane(name="all", arguments=()),
    )
    assert lanes_of(lines) == expected
    assert lanes_of("\n" + "\n".join(lines) + "\n") == expected


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, r"no lane is configured"),
        ("", r"no lane is configured"),
        ("just arguments", r"'just arguments' is not 'NAME: \[GPUS\] ARGUMENTS'"),
        ("a: [two] -x", r"'two' is not COUNTxMEMORY"),
        ("a: -m 'open", r"the arguments of lane 'a'"),
        ("a: -x\na: -y", r"lane 'a' is there twice"),
    ],
)
def test_a_lane_that_cannot_be_read_is_named(value, says):
    with pytest.raises(UsageError, match=says):
        lanes_of(value)


def test_a_test_that_one_lane_runs_is_no_orphan():
    """A test that a lane did not collect at all counts too.

    So does one that only the project without arguments has.
    """
    lanes = {"a": {"t1": "", "t2": "skipped: no GPU"}, "b": {"t2": "deselected", "t3": ""}}
    found = compared(lanes, {"t1": "", "t2": "", "t4": ""})
    assert (found.lanes, found.tests) == ({"a": 1, "b": 1}, 4)
    assert {orphan.test: orphan.reasons for orphan in found.orphans} == {
        "t2": {"a": "skipped: no GPU", "b": "deselected"},
        "t4": {"a": NOT_COLLECTED, "b": NOT_COLLECTED},
    }


RESULTS = st.dictionaries(st.sampled_from("abcde"), st.sampled_from(["", "skipped", "deselected"]))


@given(st.dictionaries(st.sampled_from(["x", "y", "z"]), RESULTS, min_size=1), RESULTS)
def test_every_test_is_run_by_a_lane_or_is_an_orphan(lanes, everything):
    found = compared(lanes, everything)
    ran = {test for lane in lanes.values() for test, reason in lane.items() if not reason}
    assert {orphan.test for orphan in found.orphans} | ran == set(everything).union(*lanes.values())
    assert not ran & {orphan.test for orphan in found.orphans}
