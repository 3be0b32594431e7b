"""A history as JSON lines: export, import, merges in git, and lines that are none."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from msgspec.structs import replace
from support.history_records import RECORDS, metric, record

from pytest_llmperf.commands import cli
from pytest_llmperf.commands.transfer import EXIT_SKIPPED
from pytest_llmperf.core import record_json
from pytest_llmperf.core.record import SCHEMA_VERSION
from pytest_llmperf.errors import StoreError
from pytest_llmperf.history import accept, transfer
from pytest_llmperf.history.accept import Acceptance, Rename
from pytest_llmperf.history.store import open_store

HERE = "sqlite:///.llmperf/history.db"
LEVEL = Acceptance(
    series="k",
    record="a",
    created="2026-11-23T05:00:00+00:00",
    test="t",
    who="me",
    why="wanted",
    when="2026-11-24",
)
RENAME = Rename(old="t.py::a", new="t.py::b", who="me", why="clearer", when="2026-11-24")


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def filled(url, folder, *made):
    with open_store(url, folder=folder) as store:
        assert store.add_many(made) == len(made)


def at(hour, name, **changes):
    return record(name, created=f"2026-11-23T{hour:02}:00:00+00:00", **changes)


def llmperf(*arguments, code=0):
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == code, (done.output, done.exception)
    return done


def ids(url, folder):
    with open_store(url, folder=folder, create=False) as store:
        return [each.id for each in store.records(oldest_first=True)]


def lines(*made, end=b"\n"):
    return b"\n".join(record_json.encode(each) for each in made) + end


# There and back


def test_what_is_exported_comes_back_in_another_store(project, url):
    """Records with samples and outcomes, and a second import adds nothing."""
    made = [at(hour, f"r{hour}", outcome="PASS") for hour in range(5)]
    filled(HERE, project, *made)
    assert "5 lines added to out.jsonl" in llmperf("export", "--out", "out.jsonl").output
    said = llmperf("import", "out.jsonl", "--store", url).output
    assert "5 records imported" in said
    assert "0 already present" in said
    assert "0 records imported" in (again := llmperf("import", "out.jsonl", "--store", url).output)
    assert "5 already present" in again
    with open_store(url, folder=project) as store:
        assert list(store.records(oldest_first=True)) == made


@given(made=RECORDS)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None
)
def test_any_record_is_the_same_after_its_line(made):
    """And its line has its keys sorted, so that the same record is the same line everywhere."""
    (line,) = transfer.export_lines([made], ())
    assert record_json.encode(record_json.decode(line), sorted_keys=True) + b"\n" == line
    assert record_json.decode(line).id == made.id
    keys = list(json.loads(line))
    assert keys == sorted(keys)
    assert line.count(b"\n") == 1


def test_an_export_to_standard_output_is_a_file_that_can_be_imported(project):
    """For a pipe."""
    filled(HERE, project, at(1, "a"))
    Path("piped.jsonl").write_text(llmperf("export").stdout)
    assert (
        "1 records imported"
        in llmperf("import", "piped.jsonl", "--store", "sqlite:///other.db").output
    )


def test_a_file_is_only_appended_to(project):
    """What is in it stays byte by byte; new records come after it.

    A line that was cut off is ended first.
    """
    filled(HERE, project, at(3, "b"), at(2, "a"))
    llmperf("export", "--out", "out.jsonl")
    before = Path("out.jsonl").read_bytes()
    assert [json.loads(line)["id"] for line in before.splitlines()] == ["a", "b"]
    filled(HERE, project, at(1, "c"))
    assert "1 line added" in llmperf("export", "--out", "out.jsonl").output
    assert Path("out.jsonl").read_bytes().startswith(before)
    Path("out.jsonl").write_bytes(before[:-20])
    assert "2 lines added" in llmperf("export", "--out", "out.jsonl").output
    assert (
        "3 records imported"
        in llmperf("import", "out.jsonl", "--store", "sqlite:///o.db", code=EXIT_SKIPPED).output
    )


def test_two_stores_with_the_same_records_export_the_same_bytes(project):
    """Whatever the order in which they came."""
    made = [at(1, name) for name in "abc"]
    for name, order in (("x", made), ("y", made[::-1])):
        filled(f"sqlite:///{name}.db", project, *order)
        llmperf("export", "--out", f"{name}.jsonl", "--store", f"sqlite:///{name}.db")
    assert Path("x.jsonl").read_bytes() == Path("y.jsonl").read_bytes()


def test_selectors(project):
    """A part of a node id, a time, a series.

    A name that matches nothing is an error with the nearest.
    """
    filled(HERE, project, at(1, "a"), at(2, "b", test="t.py::other"), at(3, "c"))

    def exported(*selectors):
        return [
            json.loads(line)["id"] for line in llmperf("export", *selectors).stdout.splitlines()
        ]

    assert exported("other") == ["b"]
    assert exported("other", "test_pays") == ["a", "b", "c"]
    assert exported("--since", "2026-11-23T02:00:00Z") == ["b", "c"]
    with open_store(HERE, folder=project) as store:
        (key,) = [series.key for series in store.series() if series.test == "t.py::other"]
    assert exported("--series", key) == ["b"]
    assert "Did you mean 't.py::other'?" in llmperf("export", "t.py::othre", code=1).output


def test_accepted_changes_travel(project):
    """To the project's reviewed file, each once."""
    filled(HERE, project, at(1, "a"))
    accept.append(project, LEVEL)
    accept.append(project, RENAME)
    llmperf("export", "--out", "out.jsonl")
    (project / accept.FILE).unlink()
    assert "2 accepted changes added" in llmperf("import", "out.jsonl", "out.jsonl").output
    assert accept.reviewed(project) == accept.Reviewed(accepted=(LEVEL,), renames=(RENAME,))


# In git


def git(*arguments):
    identity = [
        "-c",
        "user.name=me",
        "-c",
        "user.email=me@example.org",
        "-c",
        "commit.gpgsign=false",
    ]
    done = subprocess.run(
        ["git", *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def commit_record(name, hour):
    """Export a store with this one record to the branch's file, and commit that."""
    filled(f"sqlite:///{name}.db", Path.cwd(), at(hour, name))
    llmperf("export", "--out", "history.jsonl", "--store", f"sqlite:///{name}.db")
    git("add", "history.jsonl", ".gitattributes")
    git("commit", "-q", "-m", name)


@pytest.mark.parametrize(
    "attributes", ["history.jsonl merge=union\n", ""], ids=["union", "without"]
)
def test_two_branches_merge_without_conflict_and_import_right(project, attributes):
    """Each added a record to the same file: with merge=union every line of both is kept.

    Without, git reports a conflict.
    """
    git("init", "-q", "-b", "main")
    Path(".gitattributes").write_text(attributes)
    commit_record("shared", 1)
    for name, hour in (("left", 2), ("right", 3)):
        git("checkout", "-q", "-b", name, "main")
        commit_record(name, hour)
    if not attributes:
        with pytest.raises(subprocess.CalledProcessError):
            git("merge", "-q", "left")
        said = llmperf(
            "import", "history.jsonl", "--store", "sqlite:///merged.db", code=EXIT_SKIPPED
        ).output
        assert said.count("skipped") == 3  # the three lines that mark a conflict
    else:
        git("merge", "-q", "left")
        llmperf("import", "history.jsonl", "--store", "sqlite:///merged.db")
    assert ids("sqlite:///merged.db", project) == ["shared", "left", "right"]


# Lines that are none, and doubles


def test_bad_lines_are_named_by_number_and_everything_else_is_imported(project):
    """The exit code is 3, and each skipped line has its reason.

    Lines are half-written at the end or in the middle, or are something else.
    """
    whole = (
        lines(at(1, "a"))
        + b"{broken\n"
        + lines(at(2, "b"))
        + b'{"x": 1}\n'
        + lines(at(3, "c"))[:-30]
    )
    Path("out.jsonl").write_bytes(whole)
    done = llmperf("import", "out.jsonl", code=EXIT_SKIPPED)
    assert "2 records imported" in done.output
    assert [line.split(": ")[0] for line in done.stderr.splitlines()] == [
        "out.jsonl:2",
        "out.jsonl:4",
        "out.jsonl:5",
    ]
    assert "half-written" in done.stderr.splitlines()[2]
    assert ids(HERE, project) == ["a", "b"]


def test_doubles_are_counted(project, url):
    """The same record twice in a file, and in a second file."""
    Path("one.jsonl").write_bytes(lines(at(1, "a"), at(1, "a"), at(2, "b")))
    Path("two.jsonl").write_bytes(lines(at(2, "b"), at(3, "c")))
    said = llmperf("import", "one.jsonl", "two.jsonl", "--store", url).output
    assert "3 records imported" in said
    assert "2 already present" in said


def test_an_outcome_that_came_later_is_kept_whatever_the_order(project, url):
    """--llmperf-json writes a record when it is measured and again with its outcome.

    A merge may turn them round.
    """
    first, later = at(1, "a"), at(1, "a", outcome="FAIL")
    Path("turned.jsonl").write_bytes(lines(later, first))
    Path("first.jsonl").write_bytes(lines(at(2, "b")))
    Path("later.jsonl").write_bytes(lines(at(2, "b", outcome="PASS")))
    said = llmperf("import", "turned.jsonl", "first.jsonl", "later.jsonl", "--store", url).output
    assert "2 records imported" in said
    assert "1 already present, 1 outcomes updated" in said
    with open_store(url, folder=project) as store:
        assert [each.outcome for each in store.records(oldest_first=True)] == ["FAIL", "PASS"]
    llmperf("import", "first.jsonl", "--store", url)
    with open_store(url, folder=project) as store:
        assert next(iter(store.records())).outcome == "PASS"


def test_more_lines_than_one_transaction_holds(project, url):
    """620 records in two transactions; each is there once."""
    Path("many.jsonl").write_bytes(lines(*(record(f"r{i}") for i in range(620))))
    assert "620 records imported" in llmperf("import", "many.jsonl", "--store", url).output
    assert len(ids(url, project)) == 620


def test_a_file_of_a_newer_version_is_refused_whole(project):
    """A history with gaps misleads; the line and the remedy are named."""
    newer = msgspec.json.encode(
        {**msgspec.to_builtins(at(2, "b")), "schema_version": SCHEMA_VERSION + 1}
    )
    Path("out.jsonl").write_bytes(lines(at(1, "a")) + newer + b"\n")
    said = llmperf("import", "out.jsonl", code=1).output
    assert "out.jsonl:2" in said
    assert "Upgrade pytest-llmperf" in said
    assert ids(HERE, project) == []


def test_a_foreign_file_is_refused(project):
    """Something else's JSON is no history, and neither is a missing file."""
    Path("bench.json").write_text(json.dumps({"benchmarks": [], "version": "5"}) + "\n")
    assert "bench.json is no history" in llmperf("import", "bench.json", code=1).output
    assert "cannot be read" in llmperf("import", "nothing.jsonl", code=1).output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"unit": "tokens/min", "formula": "output_throughput/1"},
            "throughput is in 'tokens/min', higher is better; by its definition",
        ),
        (
            {"direction": "lower", "formula": "output_throughput/1"},
            "throughput is in 'tok/s', lower is better; by its definition",
        ),
        (
            {"unit": "ms"},
            (
                "throughput is in 'ms', higher is better; "
                "other runs of the same series in this file are in 'tok/s'"
            ),
        ),
    ],
)
def test_a_metric_in_another_unit_or_direction_is_refused_by_line(project, changes, said):
    """It would be compared with numbers of another kind.

    Other lines are imported; another definition is another matter.
    """
    wrong = replace(metric(), **changes)
    Path("out.jsonl").write_bytes(lines(at(1, "a"), at(2, "b", metrics=(wrong,)), at(3, "c")))
    done = llmperf("import", "out.jsonl", code=EXIT_SKIPPED)
    assert f"out.jsonl:2: skipped, {said}" in done.stderr
    assert ids(HERE, project) == ["a", "c"]


def test_a_time_that_is_none_is_refused_by_line(project):
    """Its place in the series would be unknown."""
    Path("out.jsonl").write_bytes(lines(at(1, "a"), record("b", created="yesterday")))
    assert (
        "out.jsonl:2: skipped, 'yesterday' is not an ISO 8601 time"
        in llmperf("import", "out.jsonl", code=EXIT_SKIPPED).stderr
    )


def test_a_file_that_cannot_be_written_is_one_message(project):
    """A folder in its place."""
    filled(HERE, project, at(1, "a"))
    Path("taken").write_text("")
    assert "cannot be written" in llmperf("export", "--out", "taken/out.jsonl", code=1).output
    with pytest.raises(StoreError, match="cannot be written"):
        transfer.append_new(project, [])


def test_an_export_without_a_history_says_how_to_get_one(project):
    """As the other commands do."""
    assert "no store at" in llmperf("export", code=1).stderr
