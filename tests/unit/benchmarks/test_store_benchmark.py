"""The small form of benchmarks/store.py: what it fills is a history.

Writers at the same time lose and double nothing.
"""

from __future__ import annotations

import pytest
import store as benchmark
from support.history_records import metric, record

from pytest_llmperf.history.store import open_store

MODEL = record("model", metrics=(metric("throughput", 14.2), metric("ttft.p50", 0.08, "s")))


def test_a_filled_store_is_a_history(url, tmp_path):
    """Runs are spread over the series; each comes back whole, and the gate finds its baseline."""
    benchmark.fill(url, tmp_path, MODEL, 2500)
    with open_store(url, folder=tmp_path) as store:
        assert len(store.tests()) == benchmark.SERIES
        found = list(store.records(test="test_it.py::test_7"))
        assert [each.id for each in found] == ["r2007", "r1007", "r7"]
        assert found[0].metrics == MODEL.metrics
        benchmark._decide(store, MODEL)


@pytest.mark.nightly
def test_writers_at_the_same_time_are_counted(url, tmp_path):
    """Three processes, 20 runs each: the bar is met; with one run fewer wanted it would not be."""
    row = benchmark.together(url, tmp_path, MODEL, 3, 20)
    assert row["met"]
    assert row["seen"].startswith("60 of 60 runs, 60 with their outcome")
    assert not benchmark.together(url, tmp_path, MODEL, 3, 19)["met"]
