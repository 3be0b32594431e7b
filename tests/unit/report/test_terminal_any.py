"""The summary of any runs: lines fit the terminal, and every run is told from the others."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from support.reporting import METRICS, Terminal, metric, record

from pytest_llmperf.report.table import display_width
from pytest_llmperf.report.terminal import write_summary

NUMBERS = st.one_of(st.none(), st.floats(1e-9, 1e12))
METRIC = st.builds(
    lambda name, value, spread: metric(
        *name[:1],
        value,
        name[1],
        *_ends(value, spread),
        reason="because" if value is None else "",
    ),
    st.sampled_from([(m.name, m.unit) for m in METRICS]),
    NUMBERS,
    st.one_of(st.none(), st.tuples(st.floats(0, 0.9), st.floats(0, 9))),
)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=150)
RUN = st.builds(
    lambda test, strategy, metrics, outcome, pair, agreement: {
        "test": f"tests/test_x.py::{test}",
        "strategy": strategy,
        "metrics": tuple(metrics),
        "outcome": outcome,
        "paired_with": pair,
        "agreement": agreement,
    },
    NAMES,
    st.sampled_from(["bf16", "fp32", "int8+static-cache+compile:max-autotune+kv-int8"]),
    st.lists(METRIC, max_size=6, unique_by=lambda m: m.name),
    st.sampled_from(["PASS", "FAIL", "UNDECIDED", "NOT COMPARABLE", "recorded"]),
    st.sampled_from([None, "p", "q"]),
    st.sampled_from([None, {"itself": True}, {"top1": {"value": 0.99}}, {"top1": 0.5}]),
)


def _ends(value, spread):
    return (
        (None, None)
        if value is None or spread is None
        else (value * (1 - spread[0]), value * (1 + spread[1]))
    )


def _summary(width, records, *, invalid=(), notes=(), verbosity=0):
    tr = Terminal(width)
    write_summary(tr, records, (), invalid, notes, verbosity)
    return tr


def _table(tr, n):
    return tr.lines[2 : 2 + n]


@given(
    st.lists(RUN, max_size=6),
    st.integers(40, 200),
    st.integers(-1, 1),
    st.lists(st.tuples(NAMES, NAMES), max_size=2),
)
def test_no_line_is_longer_than_the_terminal_whatever_is_in_it(runs, width, verbosity, named):
    tr = _summary(
        width,
        records=[record(i, **run) for i, run in enumerate(runs)],
        invalid=named,
        notes=["n " * 99],
        verbosity=verbosity,
    )
    assert all(display_width(line) <= width for line in tr.lines)
    assert all(line.isprintable() for line in tr.lines)
    assert verbosity >= 0 or len(tr.lines) == 1


@given(st.lists(RUN, min_size=1, max_size=6), st.integers(40, 200), st.integers(0, 1))
def test_every_run_is_one_row_with_its_verdict(runs, width, verbosity):
    tr = _summary(
        width, records=[record(i, **run) for i, run in enumerate(runs)], verbosity=verbosity
    )
    rows = _table(tr, len(runs))
    assert [row.endswith(run["outcome"]) for row, run in zip(rows, runs, strict=True)] == [
        True
    ] * len(runs)
    assert tr.lines[2 + len(runs)].startswith("tok/s:")


@given(st.lists(METRIC, max_size=9, unique_by=lambda m: m.name), st.integers(60, 200))
def test_no_number_is_without_its_unit_in_cell_or_header(metrics, width):
    run = record(1, metrics=tuple(metrics), test="test_a", strategy="fp", workload_text="decode")
    header, row = _summary(width, records=[run], verbosity=1).lines[1:3]
    cells = dict(zip(re.split(r"  +", header), re.split(r"  +", row), strict=True))
    for name, cell in cells.items():
        number = re.match(r"^[\[>]?-?[\d.]+(e-?\d+)?(?P<rest>.*)", cell)
        if number and name not in {"samples", "tok/s"}:
            assert re.fullmatch(r" (s|ms|µs|[kMGT]?B|m?J|kJ|%)|x", number["rest"]), (name, cell)


@given(st.integers(60, 200))
def test_different_strategies_never_look_the_same(width):
    names = [
        "bf16+static-cache",
        "bf16+static-cache+compile",
        "bf16+dynamic-cache",
        "bf16-mixed+static-cache",
    ]
    tr = _summary(
        width,
        records=[record(i, test="t.py::test_a", strategy=name) for i, name in enumerate(names)],
    )
    assert len(set(_table(tr, len(names)))) == len(names)
