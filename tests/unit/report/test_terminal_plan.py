"""What --llmperf-plan prints."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from support.reporting import Terminal

from pytest_llmperf.report.plan import PlanRow, totals, write_plan
from pytest_llmperf.report.table import display_width

GOLDEN = Path(__file__).parents[1] / "golden"

FITS = PlanRow(
    test="tests/test_a.py::test_speed[bf16]",
    model="smollm2-135m",
    engine="transformers",
    device="cpu",
    strategy="bf16",
    weights_bytes=269_000_000,
    available_bytes=20_000_000_000,
    planned_s=20,
    load_key="bf16",
)
TOO_LARGE = PlanRow(
    test="tests/test_a.py::test_falcon",
    model="arch:falcon-40b",
    engine="transformers",
    device="cuda",
    strategy="fp32",
    weights_bytes=167_000_000_000,
    available_bytes=139_000_000_000,
    planned_s=200,
    load_key="falcon",
)
UNKNOWN = PlanRow(
    test="tests/test_a.py::test_hub",
    model="org/model",
    engine="transformers",
    device="cpu",
    strategy="auto",
)
SKIPPED = PlanRow(test="tests/test_a.py::test_gpu", status="skip", reason="needs a GPU")
ERROR = PlanRow(
    test="tests/test_a.py::test_typo[nf5]",
    status="error",
    reason="strategy part 'nf5' is not known. Did you mean 'nf4'?",
)


def _plan(*rows, width=120, **terminal):
    tr = Terminal(width, **terminal)
    write_plan(tr, rows)
    return tr


def test_what_a_comparison_takes_is_added_at_most():
    """To what the test took last time, and to what it is predicted to take."""
    took = structs.replace(FITS, expected_s=40.0, pairs_s=600.0)
    new = structs.replace(FITS, test="t.py::test_new", predicted_s=41.0, pairs_s=600.0)
    text = _plan(took, new).text
    assert "≤ 10 min 40 s" in text
    assert "≤ 10 min 41 s" in text
    assert (took.device_s, new.device_s) == (640.0, 641.0)
    alone = structs.replace(took, pairs_s=None)
    assert "≤" not in _plan(alone).text


def test_the_whole_plan_reads_as_agreed():
    """The file in golden/ is what a person looked at."""
    text = _plan(FITS, TOO_LARGE, UNKNOWN, SKIPPED, ERROR, width=110).text
    agreed = (GOLDEN / "plan-110.txt").read_text(encoding="utf-8")
    assert text.split("\n", 1)[1] == agreed


def test_tests_that_share_a_model_count_one_load():
    assert (
        totals([FITS, FITS, TOO_LARGE])
        == "3 tests would run, 2 model loads, 4 min 0 s of sampling at most"
    )


def test_a_plan_without_tests_says_so():
    assert _plan().lines[1:] == ["0 tests would run, 0 model loads"]


def test_a_plan_that_is_only_errors_names_each():
    tr = _plan(ERROR, SKIPPED)
    assert [line.split()[0] for line in tr.lines[1:]] == ["ERROR", "SKIPPED", "0"]


def test_what_does_not_fit_is_coloured_and_what_fits_is_not():
    tr = _plan(FITS, TOO_LARGE, colour="yes")
    assert tr.lines[2].endswith("fits")
    assert tr.lines[3].endswith("\x1b[33mtoo large\x1b[0m")


NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=120)
SIZE = st.one_of(st.none(), st.integers(0, 10**13))
ROW = st.builds(
    PlanRow,
    test=NAME,
    status=st.sampled_from(["run", "skip", "error"]),
    reason=NAME,
    model=NAME,
    engine=st.just("transformers"),
    device=st.sampled_from(["cpu", "cuda"]),
    strategy=st.sampled_from(["bf16", "fp32", "bf16+static-cache+compile:max-autotune"]),
    weights_bytes=SIZE,
    available_bytes=SIZE,
    planned_s=st.one_of(st.none(), st.floats(0, 1e6)),
)


@given(st.lists(ROW, max_size=6), st.integers(40, 200))
def test_no_line_is_longer_than_the_terminal_and_every_test_is_there(rows, width):
    tr = _plan(*rows, width=width)
    assert all(display_width(line) <= width and line.isprintable() for line in tr.lines)
    n = sum(row.status == "run" for row in rows)
    assert (
        sum(bool(re.search(r"  (fits|too large|not known)$", line)) for line in tr.lines[2:]) >= n
    )


def test_what_a_test_takes_is_predicted_from_loads_where_it_never_ran():
    """A load of 8 s, a warm-up of 10 s at most, 20 s of sampling, 3 s of reading."""
    row = PlanRow(test="a.py::test_new", model="m", planned_s=20, load_s=8, predicted_s=41)
    text = _plan(row, width=110).text
    assert "≤ 41 s" in text
    assert "8 s" in text
    assert row.device_s == 41
    assert PlanRow(test="a.py::t", planned_s=20, predicted_s=41, expected_s=30).device_s == 30


def test_the_processes_of_a_test_are_named_where_they_are_known():
    known = PlanRow(test="a.py::test_known", model="m", planned_s=20, processes=6)
    new = PlanRow(test="a.py::test_new", model="m", planned_s=20)
    text = _plan(known, new, width=110).text
    assert re.search(r"test_known .* 6 ", text)
    assert re.search(r"test_new .* auto ", text)
