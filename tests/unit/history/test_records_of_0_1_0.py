"""What version 0.1.0 wrote is read: lines of JSON and a store, both written by that version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from pytest_llmperf.commands import cli
from pytest_llmperf.core import record_json
from pytest_llmperf.history.store import open_store

GOLDEN = Path(__file__).parents[1] / "golden"
LINES = GOLDEN / "records-0.1.0.jsonl"
RECORDS = [record_json.decode(line) for line in LINES.read_bytes().splitlines()]


def record_of(test: str):
    """Return the last record of the test whose name ends so."""
    return [record for record in RECORDS if record.test.endswith(test)][-1]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return a project whose store version 0.1.0 wrote."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / ".llmperf").mkdir()
    shutil.copy(GOLDEN / "history-0.1.0.db", tmp_path / ".llmperf" / "history.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def llmperf(*arguments):
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_the_lines_are_of_every_kind_of_record():
    """A run, a pair, an agreement, traffic on a server, and a quantized model."""
    assert {record.workload["type"] for record in RECORDS} == {
        "decode",
        "prefill",
        "agreement",
        "serve",
    }
    assert record_of("[bf16]").paired_with is not None


def test_fields_that_have_another_name_now_are_read_under_it():
    """Version 0.1.0 wrote "quantised"; a reader that misses it finds no quantized layer."""
    assert '"quantised":true' in LINES.read_text(encoding="utf-8")
    effective = record_of("test_quantised").effective
    assert any(group.quantized for group in effective.linears)
    assert effective.quantized is not None
    assert effective.quantized.converted > 0


def test_a_record_that_is_read_and_written_again_says_the_same():
    """No field of a line of 0.1.0 is lost or changed on the way through this version."""
    for line in LINES.read_bytes().splitlines():
        old, new = json.loads(line), json.loads(record_json.encode(record_json.decode(line)))
        if new["effective"] is not None:
            # Fields of 0.2.0.
            assert {group.pop("example") for group in new["effective"]["tensors"]} <= {""}
            assert new["effective"].pop("tensor_parallel") == ""
            assert new["effective"].pop("other_matrices") == []
            assert new["effective"].pop("stored_quantized") == ""
            assert new["effective"].pop("server_settings") == []
            assert new["effective"].pop("computes") == []
            assert new["effective"].pop("compiled_share") is None
            assert new["effective"].pop("offloaded_at_once_bytes") == 0
        assert {name: new[name] for name in old} == old


def test_the_commands_read_its_store(project):
    """The history, a comparison, a page and an export are made of what 0.1.0 stored."""
    with open_store("sqlite:///.llmperf/history.db", folder=project) as store:
        assert len(list(store.records())) == 7
    assert "test_prefill" in llmperf("history")
    llmperf("report", "--out", "report.html")
    assert "test_served" in (project / "report.html").read_text(encoding="utf-8")
    llmperf("export", "--out", "out.jsonl")
    assert "throughput" in llmperf("compare", "out.jsonl", str(LINES))


def test_its_lines_are_imported_into_its_store(project):
    """What is there already stays, the rest is added."""
    assert "1 records imported" in llmperf("import", str(LINES))
