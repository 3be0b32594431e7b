"""`llmperf history`: series, their last values, and the messages where there are none."""

from __future__ import annotations

import json

from support.command_line import llmperf
from support.history_records import record

from pytest_llmperf.history.store import open_store


def test_history_shows_series_and_their_last_values(measured):
    """Value, interval, samples, age and outcome, newest first; a prefill by its own metric."""
    lines = llmperf("history").stdout.splitlines()
    first = next(line for line in lines if "test_pays" in line)
    for text in (
        "test_pays[bf16]",
        "decode b1 p128 n128",
        "bf16",
        " 2 ",
        "12.5 tok/s",
        "±1.0 %",
        "1 d",
        "PASS",
    ):
        assert text in first, text
    assert "10.0 tok/s" in lines[lines.index(first) + 1]
    assert "512 tok/s" in next(line for line in lines if "test_prefill" in line)


def test_history_works_from_a_subfolder_of_the_project(measured, monkeypatch):
    """As pytest does."""
    (measured / "sub").mkdir()
    monkeypatch.chdir(measured / "sub")
    assert "test_pays" in llmperf("history").stdout


def test_history_of_a_test_and_a_metric(measured):
    """A part of the node id is enough; what could not be measured is said, not left out."""
    out = llmperf("history", "test_pays", "--metric", "energy.per_token", "--limit", "1").stdout
    assert "n/m" in out
    assert "test_prefill" not in out
    assert len(out.splitlines()) == 2


def test_history_as_json(measured):
    """One document with whole numbers."""
    document = json.loads(llmperf("history", "test_pays", "--json").stdout)
    (series,) = document["series"]
    assert (series["n"], series["strategy"]) == (2, "bf16")
    assert [point["value"] for point in series["points"]] == [12.5, 10.0]


def test_history_names_an_unknown_metric_and_the_known_ones(measured):
    """With the nearest."""
    message = llmperf("history", "--metric", "throughptu", code=1).stderr
    assert "Did you mean 'throughput'?" in message


def test_history_of_a_test_that_is_not_there(measured):
    """Says so, with the way to those that are."""
    assert (
        "has 'nothing' in its name. 'llmperf history' lists them all"
        in llmperf("history", "nothing").stdout
    )


def test_history_without_a_store_says_how_to_get_one(project):
    """No traceback, no file made."""
    result = llmperf("history", code=1)
    assert "no store at" in result.stderr
    assert "A pytest run with llmperf tests makes it" in result.stderr
    assert not (project / ".llmperf").exists()


def test_history_of_an_empty_store_says_so(project):
    """An empty store is no error."""
    open_store("sqlite:///.llmperf/history.db", folder=project).close()
    assert "is empty. A pytest run" in llmperf("history").stdout
    assert json.loads(llmperf("history", "--json").stdout)["series"] == []


def test_history_of_the_store_in_the_ini_file(project):
    """And 'none' is said."""
    (project / "pytest.ini").write_text("[pytest]\nllmperf_store = sqlite:///elsewhere.db\n")
    with open_store("sqlite:///elsewhere.db", folder=project) as store:
        store.add(record("a"))
    assert "test_pays" in llmperf("history").stdout
    (project / "pytest.ini").write_text("[pytest]\nllmperf_store = none\n")
    assert "keeps no history" in llmperf("history", code=1).stderr


def test_a_bad_store_url_is_one_message(project):
    """The choices are in it."""
    message = llmperf("history", "--store", "mysql://x/y", code=1).stderr
    assert message.startswith("Error: store URL")
    assert "postgresql+psycopg" in message
