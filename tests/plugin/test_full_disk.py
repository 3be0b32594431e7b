"""A disk that is full for the store and its spool: one clear line at the end, no traceback.

What can be stored is stored.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pytest_llmperf.history.store import open_store

FULL = """
import os, resource

def no_room():
    # Files may not grow any more; pipes may, so that the report is read.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))

def room_again():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def test_before(llm):
    llm.run(WORK)

def test_full(llm):
    llm.load()
    no_room()
    llm.run(WORK)

def test_after(llm):
    llm.run(WORK)
"""


def session(folder, *arguments):
    """A session whose output goes through pipes: a file would be limited as well."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s", "-v", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
        timeout=300,
    )


@pytest.mark.parametrize(
    "xdist",
    [
        pytest.param((), id="plain"),
        pytest.param(("-n", "1"), id="xdist", marks=pytest.mark.nightly),
    ],
)
def test_a_disk_full_for_store_and_spool_is_a_clear_error_and_keeps_what_came_before(
    project, pytester, xdist
):
    """Tests that could not be stored are errors; the end says how many results were lost.

    The first record is sound.
    """
    project(FULL)
    done = session(pytester.path, *xdist)
    said = done.stdout + done.stderr
    assert "INTERNALERROR" not in said
    assert "Traceback" not in said
    assert "measured results could be kept neither in the store nor beside it" in " ".join(
        said.split()
    )
    assert done.returncode == 1
    with open_store("sqlite:///.llmperf/history.db", folder=pytester.path) as store:
        assert [(each.test, each.outcome) for each in store.records()] == [
            ("test_it.py::test_before", "RECORDED")
        ]


def test_a_disk_with_room_again_at_the_end_loses_nothing(project, pytester):
    """What was kept in memory is written when the session closes."""
    project(FULL + "\ndef test_room(llm):\n    room_again()\n")
    done = session(pytester.path)
    assert "could be kept neither" not in done.stdout
    with open_store("sqlite:///.llmperf/history.db", folder=pytester.path) as store:
        assert {each.test for each in store.records()} == {
            f"test_it.py::test_{name}" for name in ("before", "full", "after")
        }


def test_a_full_store_does_not_keep_records_out_of_the_json_file(project, pytester):
    """Each place is tried, whatever the other says."""
    project(
        """
from pytest_llmperf.errors import StoreError
from pytest_llmperf.history.store import Store

@pytest.fixture(autouse=True)
def the_store_is_full(monkeypatch):
    def full(*_args):
        raise StoreError("the disk is full")
    monkeypatch.setattr(Store, "add", full)

def test_full(llm):
    llm.run(WORK)
""",
    )
    done = session(pytester.path, "--llmperf-json=out.jsonl")
    assert "the disk is full" in done.stdout
    first = json.loads((pytester.path / "out.jsonl").read_text().splitlines()[0])
    assert first["test"] == "test_it.py::test_full"
