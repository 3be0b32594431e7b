"""Projects for the tests of the commands."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace
from support.history_records import metric, record

from pytest_llmperf.history.store import open_store


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def measured(project):
    """A project whose store has two series."""
    now = datetime.now(UTC)
    with open_store("sqlite:///.llmperf/history.db", folder=project) as store:
        for days, value in ((3, 10.0), (1, 12.5)):
            made = record(
                f"r{days}",
                created=(now - timedelta(days=days, hours=1)).isoformat(),
                outcome="PASS",
            )
            store.add(
                replace(made, metrics=(metric(value=value), metric("energy.per_token", None, "J")))
            )
        prefill = (metric("prefill_throughput", 512.0),)
        store.add(
            record("p", test="t.py::test_prefill", workload_text="prefill b1 p512", metrics=prefill)
        )
    return project
