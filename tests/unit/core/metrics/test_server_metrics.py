"""Servers' Prometheus pages: values are told from exemplars, and a bad line loses no other."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.core.metrics import server_metrics

QUERIES = "vllm:prefix_cache_queries_total"


@pytest.mark.parametrize(
    "line",
    [
        QUERIES + '{le="1"} 17 # {trace_id="a"} 0.5',
        QUERIES + ' 17 # {trace_id="a"} 0.5 1520879607.789',
        QUERIES + '{le="a } 3"} 17',
        QUERIES + '{le="a\\"} 3"}\t17 1395066363000',
        "  " + QUERIES + "   1.7e1  ",
    ],
    ids=["exemplar", "no labels", "brace in a label", "escaped quote", "spaces"],
)
def test_a_value_is_neither_exemplar_nor_label_nor_timestamp(line):
    """An exemplar comes after the value, and looks like a sample."""
    assert server_metrics.read(line) == {"prefix_queries": 17}


@pytest.mark.parametrize(
    "line",
    [
        QUERIES,
        QUERIES + '{le="1',
        QUERIES + "{le=1} 5",
        QUERIES + '{le="1"} five',
        QUERIES + " 1_000",
        QUERIES + " " + "9" * 400,
        QUERIES + " +Inf",
        "# TYPE",
        "# TYPE 1x gauge",
        "<html>",
    ],
)
def test_a_line_that_cannot_be_read_loses_no_other(line):
    """It is left out; those before and after it are read."""
    page = f"vllm:num_requests_running 3\n{line}\nvllm:num_requests_waiting 4\n"
    assert server_metrics.read(page) == {"running": 3, "waiting": 4}


@given(st.text())
def test_no_text_makes_reading_fail(text):
    """A server may write anything after a name that we know."""
    page = f"vllm:num_requests_running 3\n{QUERIES}{text}\nvllm:num_requests_running{{a='{text}'"
    assert server_metrics.read(page)["running"] >= 3


def test_other_metrics_that_begin_with_a_name_of_ours_are_others():
    """`…_created` is the time at which a counter was made."""
    assert server_metrics.read(f"{QUERIES}_created 1.7e9\n{QUERIES} 5") == {"prefix_queries": 5}


def test_the_library_is_imported_by_nobody_who_reads_no_metrics():
    """It takes tens of milliseconds."""
    code = (
        "import sys, pytest_llmperf.plugin.hooks, pytest_llmperf.core.metrics.serving\n"
        "assert not [name for name in sys.modules if name.startswith('prometheus')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
