"""`llmperf history`: series, their last values, and the messages where there are none."""

from __future__ import annotations

import json

from msgspec.structs import replace
from support.command_line import llmperf
from support.history_records import metric, record

from pytest_llmperf.history.store import open_store


def test_history_shows_series_and_their_last_values(measured):
    """Below their test, newest value first, with ids; a prefill by its own metric."""
    lines = llmperf("history").stdout.splitlines()
    test = next(line for line in lines if "test_pays[bf16]" in line)
    series, newest, older = lines[lines.index(test) + 1 :][:3]
    assert not test.startswith(" ")
    for text in ("bf16, decode b1 p128 n128", "2 runs, series "):
        assert text in series, text
    for text in ("12.5 tok/s", "±1.0 %", "1 d", "PASS", "record r1"):
        assert text in newest, text
    assert "10.0 tok/s" in older
    assert newest.index("record") == older.index("record")
    assert "512 tok/s" in "\n".join(lines[lines.index("t.py::test_prefill") :])
    assert max(map(len, lines)) <= 80


def test_the_ids_of_the_history_are_taken_by_compare(measured):
    """As they are shown."""
    lines = llmperf("history", "test_pays").stdout.splitlines()
    series = lines[1].rpartition(" ")[2]
    assert len(series) == 8
    assert "tok/s" in llmperf("compare", series, series).stdout


def test_what_a_test_measured_before_is_compared_by_its_name(project):
    """`last` is the newest session, a name the tests that have it; without ids."""
    with open_store("sqlite:///.llmperf/history.db", folder=project) as store:
        for n, (name, value) in enumerate((("a", 10.0), ("b", 20.0), ("a", 12.0), ("b", 25.0))):
            made = record(
                f"record{n}",
                test=f"t.py::test_{name}",
                session_id=f"session{n // 2}",
                created=f"2026-11-0{1 + n}T00:00:00+00:00",
                outcome="PASS",
            )
            store.add(replace(made, metrics=(metric(value=value),)))
    both = json.loads(llmperf("compare", "last", "--json").stdout)["rows"]
    assert {(row["test"], round(row["before"]), row["after"]) for row in both} == {
        ("t.py::test_a", 10, 12.0),
        ("t.py::test_b", 20, 25.0),
    }
    one = json.loads(llmperf("compare", "test_b", "--json").stdout)["rows"]
    assert [(round(row["before"]), row["after"]) for row in one] == [(20, 25.0)]
    named = json.loads(llmperf("compare", "record0", "last", "--json").stdout)["rows"]
    both_sides = [row for row in named if row["before"] is not None]
    assert (10, 12.0) in [(round(row["before"]), row["after"]) for row in both_sides]
    assert "Did you mean 't.py::test_a'" in llmperf("compare", "t.py::tset_a", code=1).stderr


def test_there_is_nothing_before_a_first_session(measured):
    """An error, and no empty table."""
    message = llmperf("compare", "test_prefill", code=1).stderr
    assert "nothing was measured before the newest session" in message


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
    assert len(out.splitlines()) == 3


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
    """An error with the nearest name."""
    message = llmperf("history", "test_prefil2", code=1).stderr
    assert "has 'test_prefil2' in its name" in message
    assert "Did you mean 't.py::test_prefill'?" in message


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
