"""The file of JSON lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from support.history_records import RECORDS, record

from pytest_llmperf.core.record import SCHEMA_VERSION
from pytest_llmperf.errors import StoreError
from pytest_llmperf.report.json_lines import BadLine, JsonLines, read

HERE = Path(__file__).parents[2]
WRITER = """
import sys; sys.path.insert(0, sys.argv[1])
from support.history_records import record
from pytest_llmperf.report.json_lines import JsonLines
with JsonLines(sys.argv[2]) as lines:
    for i in range(50):
        lines.append(record(f"{sys.argv[3]}-{i}", label="x" * 5000))
"""


@given(RECORDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_any_record_can_be_appended_and_read(tmp_path, made):
    """What is appended last is read last."""
    with JsonLines(tmp_path / "r.jsonl") as lines:
        lines.append(made)
    assert repr(list(read(tmp_path / "r.jsonl"))[-1]) == repr(made)


def test_a_line_is_in_the_file_when_append_returns(tmp_path):
    """Nothing waits in a buffer of the process."""
    lines = JsonLines(tmp_path / "new" / "r.jsonl")
    lines.append(record("a"))
    assert [r.id for r in read(lines.path)] == ["a"]
    lines.close()


def test_four_processes_lose_and_mix_nothing(tmp_path):
    """Long lines of four processes all arrive whole."""
    path = tmp_path / "r.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(HERE), str(path), str(i)])
        for i in range(4)
    ]
    assert [w.wait(timeout=60) for w in writers] == [0] * 4
    found = list(read(path))
    assert not [line for line in found if isinstance(line, BadLine)]
    assert {r.id for r in found} == {f"{w}-{i}" for w in range(4) for i in range(50)}
    assert len(found) == 200


def test_a_half_written_line_is_skipped_and_said(tmp_path):
    """A writer that died in the middle of a line costs that line only, not those after it."""
    path = tmp_path / "r.jsonl"
    with JsonLines(path) as lines:
        lines.append(record("a"))
        lines.append(record("b"))
    path.write_bytes(path.read_bytes()[:-40])
    assert [type(line) for line in read(path)][-1] is BadLine
    with JsonLines(path) as lines:
        lines.append(record("c"))
    first, half, last = read(path)
    assert (first.id, last.id) == ("a", "c")
    assert str(half).startswith(f"{path}:2: skipped")


def test_the_last_line_cut_off_is_called_half_written(tmp_path):
    """The reader tells a line that ends too early from one that is something else."""
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'"something else"\n{"id": "x", ')
    other, half = read(path)
    assert "half-written" in half.reason
    assert "half-written" not in other.reason


def test_a_newer_line_is_skipped_with_the_next_step(tmp_path):
    """A line of a newer version says so."""
    with JsonLines(tmp_path / "r.jsonl") as lines:
        lines.append(record("a", schema_version=SCHEMA_VERSION + 1))
    (line,) = read(tmp_path / "r.jsonl")
    assert "Upgrade" in line.reason


def test_a_file_that_cannot_be_written_is_a_store_error(tmp_path):
    """A folder in the file's place is an error that names it."""
    with pytest.raises(StoreError, match="cannot be written"):
        JsonLines(tmp_path).append(record("a"))
    with pytest.raises(StoreError, match="cannot be read"):
        list(read(tmp_path / "missing.jsonl"))
