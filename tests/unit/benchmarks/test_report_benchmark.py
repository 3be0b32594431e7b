"""The small form of benchmarks/report.py: it fills histories with changes.

Its bars can be missed.
"""

from __future__ import annotations

import report as benchmark
from support.history_records import metric, record

from pytest_llmperf.history.store import open_store

MODEL = record(
    "model",
    metrics=(metric("throughput", 14.2), metric("ttft.p50", 0.08, "s"), metric("mbu", 0.4, "1")),
)


def test_it_measures_a_report_of_its_histories(tmp_path, monkeypatch):
    """Of two series of 30 sessions the newest run is whole, and the page has both histories."""
    monkeypatch.setattr(benchmark, "first_paint_s", lambda _page: None)
    rows = benchmark.measure("history", tmp_path, MODEL, 2, 30)
    assert [row["what"] for row in rows] == [
        "size, 2 series of 30 runs",
        "reading and building, 2 series of 30 runs",
    ]
    assert rows[0]["met"]
    assert (tmp_path / "history.html").read_text(encoding="utf-8").count(
        '<figure data-chart="history"'
    ) == 2
    with open_store("sqlite:///history.db", folder=tmp_path) as store:
        newest, before = store.records(
            test="tests/test_speed_0.py::test_speed_of_a_long_named_thing[0]", limit=2
        )
    assert (len(newest.metrics), len(before.metrics)) == (3, 2)


def test_a_bar_that_is_missed_is_said(tmp_path, monkeypatch):
    """The control: bars of nothing at all."""
    monkeypatch.setattr(benchmark, "first_paint_s", lambda _page: 3.0)
    monkeypatch.setitem(benchmark.BARS, "suite", (0.0, 0.0))
    assert [row["met"] for row in benchmark.measure("suite", tmp_path, MODEL, 1, 1)] == [
        False,
        False,
        False,
    ]
