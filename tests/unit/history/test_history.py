"""The store, the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, Phase, given, settings
from sqlalchemy import inspect, select, text
from support.history_records import RECORDS, metric, record

from pytest_llmperf.core.record import SCHEMA_VERSION, ClaimRecord
from pytest_llmperf.errors import StoreError
from pytest_llmperf.history import migrate
from pytest_llmperf.history.identity import SERIES_FIELDS, series_key, utc
from pytest_llmperf.history.problems import StoreMissing
from pytest_llmperf.history.store import open_store
from pytest_llmperf.history.tables import HEAD, METADATA, METRICS

HERE = Path(__file__).parents[2]
WRITER = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from support.history_records import record
from pytest_llmperf.history.store import open_store
with open_store(sys.argv[2], folder=Path(sys.argv[3]), busy_s=60) as store:
    for i in range(50):
        assert store.add(record(f"{sys.argv[4]}-{i}")), store.notices
        store.add(record("shared"))
        store.update_outcome(f"{sys.argv[4]}-{i}", "PASS")
"""


@pytest.fixture
def store(url, tmp_path):
    with open_store(url, folder=tmp_path) as opened:
        yield opened


def ids(records):
    return [r.id for r in records]


@given(made=RECORDS)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=30,
    deadline=None,
    # Shrinking against a database takes minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
def test_any_record_comes_back_as_it_was(store, made):
    """Also with NUL, NaN and every other character and number that a record can hold."""
    # A database lives longer than an example.
    made = msgspec.structs.replace(made, id=uuid.uuid4().hex)
    assert store.add(made)
    (back,) = [r for r in store.records(series=series_key(made)) if r.id == made.id]
    assert repr(back) == repr(made)


def test_a_record_is_there_for_another_reader_at_once(store, url, tmp_path):
    """Nothing waits for the end of the session."""
    store.add(record("a"))
    with open_store(url, create=False, folder=tmp_path) as other:
        assert ids(other.records()) == ["a"]


def test_adding_twice_keeps_one_and_the_first(store):
    """Adding is idempotent by id."""
    store.add(record("a", outcome="first"))
    assert store.add(record("a", outcome="second"))
    assert [(r.id, r.outcome) for r in store.records()] == [("a", "first")]


def test_an_outcome_is_noted_in_row_and_record(store):
    """Claims, outcome and agreement reach the record; agreement None leaves what is there."""
    store.add(record("a"))
    claim = ClaimRecord(text="a >= b", outcome="FAIL", margin=float("-inf"), detail="")
    store.update_outcome("a", "FAIL", (claim,), {"top1": 0.9})
    store.update_outcome("a", "FAIL", (claim,))
    (back,) = store.records()
    assert (back.outcome, back.claims, back.agreement) == ("FAIL", (claim,), {"top1": 0.9})
    assert store.series()[0].last_outcome == "FAIL"


def test_an_outcome_without_its_record_is_an_error(store):
    """The id is named."""
    with pytest.raises(StoreError, match="'nobody' is not in the store"):
        store.update_outcome("nobody", "PASS")


def test_records_come_newest_first_whatever_the_order_they_were_added_in(store):
    """Time decides, and for one moment the order of adding; limits and pages do not change that."""
    days = list(range(1, 29)) * 9  # more than two pages
    days = days[1::2] + days[::2]  # not in order
    for i, day in enumerate(days):
        store.add(record(f"{day:02d}-{i:03d}", created=f"2026-11-{day:02d}T05:00:00Z", metrics=()))
    expected = sorted((f"{day:02d}-{i:03d}" for i, day in enumerate(days)), reverse=True)
    assert ids(store.records()) == expected
    assert ids(store.records(limit=105)) == expected[:105]
    assert ids(store.records(limit=0)) == []
    assert ids(store.records(since="2026-11-27T07:00:00+02:00")) == [
        i for i in expected if i >= "27"
    ]


def test_records_can_be_asked_for_by_test_and_series(store):
    """Each filter alone and together."""
    store.add(record("a", test="t.py::x"))
    store.add(record("b", test="t.py::x", strategy="fp32"))
    store.add(record("c", test="t.py::y"))
    assert sorted(ids(store.records(test="t.py::x"))) == ["a", "b"]
    assert ids(store.records(series=series_key(record("b", test="t.py::x", strategy="fp32")))) == [
        "b"
    ]
    store.add(record("d", test="t.py::x", environment_key="other"))
    assert ids(store.records(series=series_key(record("a", test="t.py::x")), environment="e")) == [
        "a"
    ]
    assert ids(store.records(environment="other")) == ["d"]
    assert ids(store.records(test="t.py::y", series=series_key(record("a", test="t.py::x")))) == []


def test_a_store_may_be_changed_while_its_records_are_read(store):
    """Reading holds no transaction between pages."""
    for i in range(3):
        store.add(record(f"{i}", created=f"2026-11-0{i + 1}T00:00:00Z"))
    seen = []
    for found in store.records():
        seen.append(found.id)
        store.update_outcome(found.id, "seen")
    assert seen == ["2", "1", "0"]


def test_series_tell_their_count_and_newest_record(store):
    """Most recent series first."""
    store.add(record("a1", created="2026-11-01T00:00:00Z"))
    store.add(record("b1", created="2026-11-02T00:00:00Z", strategy="fp32", outcome="PASS"))
    store.add(record("a2", created="2026-11-03T00:00:00Z", environment_key="other"))
    store.add(record("a3", created="2026-11-03T00:00:00Z", environment_key="third"))
    found = [
        (s.strategy, s.n, s.last_id, s.last_outcome, s.last_environment_key) for s in store.series()
    ]
    assert found == [("bf16", 3, "a3", "recorded", "third"), ("fp32", 1, "b1", "PASS", "e")]
    assert store.series(test="no such test") == []


def test_points_are_a_metric_over_time(store):
    """Not measurable is a point without a value, not a missing one."""
    for day, value in ((1, 10.0), (2, None), (3, 12.0)):
        store.add(
            record(f"r{day}", created=f"2026-11-0{day}T00:00:00Z", metrics=(metric(value=value),))
        )
    key = store.series()[0].key
    assert [(p.record_id, p.value) for p in store.points(key, "throughput")] == [
        ("r3", 12.0),
        ("r2", None),
        ("r1", 10.0),
    ]
    assert [p.record_id for p in store.points(key, "throughput", limit=1)] == ["r3"]
    assert store.metric_names() == ["throughput"]


@pytest.mark.parametrize("field", SERIES_FIELDS)
def test_each_identifying_field_makes_another_series(field):
    """And no other field does: the environment and the model's name are apart."""
    assert series_key(record("a")) != series_key(record("a", **{field: "other"}))
    assert series_key(record("a")) == series_key(
        record("b", environment_key="other", model="renamed", outcome="FAIL")
    )


def test_times_are_compared_in_utc():
    """Offsets are resolved; a time without one is UTC; something else is an error."""
    assert (
        utc("2026-11-23T05:00:00+02:00")
        == utc("2026-11-23T03:00:00")
        == "2026-11-23T03:00:00.000000Z"
    )
    with pytest.raises(StoreError, match="'yesterday' is not an ISO 8601 time"):
        utc("yesterday")


def test_four_processes_lose_and_double_nothing(url, tmp_path):
    """Four processes that find no store yet add 50 records each and note their outcomes.

    All of them try to add one record that they share.
    """
    command = [sys.executable, "-c", WRITER, str(HERE), url, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(i)]) for i in range(4)]
    assert [w.wait(timeout=120) for w in writers] == [0] * 4
    with open_store(url, create=False, folder=tmp_path) as store:
        found = list(store.records())
        assert store.notices == []
        assert store.series()[0].n == 201
    assert len(found) == 201
    assert {r.id for r in found if r.outcome == "PASS"} == {
        f"{w}-{i}" for w in range(4) for i in range(50)
    }


OPTS = {"version_table": "llmperf_alembic_version"}


def test_migrations_lead_to_the_tables_in_use(store):
    """Alembic finds no difference; with a table more, it does (negative control)."""
    with store._database.reading() as connection:
        context = MigrationContext.configure(connection, opts=OPTS)
        assert compare_metadata(context, METADATA) == []
    with store._database.writing() as connection:
        connection.execute(text("CREATE TABLE stray (a INTEGER)"))
    with store._database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=OPTS), METADATA)


def test_migrations_go_down_and_up_again(store, url, tmp_path):
    """Down leaves no table of ours; up makes a store that works."""
    store.add(record("a"))
    with store._database.writing() as connection:
        migrate.downgrade(connection, "base")
        assert set(inspect(connection).get_table_names()) == {"llmperf_alembic_version"}
    with open_store(url, folder=tmp_path) as again:
        again.add(record("b"))
        assert ids(again.records()) == ["b"]


def test_head_is_the_newest_migration():
    """The constant that saves loading Alembic is right."""
    assert ScriptDirectory(str(migrate.FOLDER)).get_heads() == [HEAD]


def test_a_store_of_a_newer_version_is_left_alone(store, url, tmp_path):
    """The revision is named, with what to do."""
    with store._database.writing() as connection:
        connection.execute(text("UPDATE llmperf_alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"schema revision '9999'.*Upgrade pytest-llmperf"):
        open_store(url, folder=tmp_path)


def test_a_record_of_a_newer_version_is_not_misread(store):
    """It is an error with the next step."""
    store.add(record("a", schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(StoreError, match="Upgrade pytest-llmperf"):
        list(store.records())


def test_without_create_nothing_is_made(url, tmp_path):
    """Looking at a history that is not there is an error and leaves no trace."""
    with pytest.raises(StoreMissing, match="A pytest run with llmperf tests"):
        open_store(url, create=False, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_deleting_a_record_takes_its_metrics_along(store):
    """Foreign keys are in force on both databases."""
    store.add(record("a"))
    with store._database.writing() as connection:
        connection.execute(text("DELETE FROM llmperf_records"))
        assert connection.execute(select(METRICS)).all() == []


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_queries_use_indexes(store):
    """No query over records scans the table: what keeps a million records fast.

    Unindexed, the plan says so (control).
    """
    filters = (
        "series_key = 'x' AND environment_key = 'e' ORDER BY created DESC, seq DESC LIMIT 30",
        "series_key = 'x' ORDER BY created DESC, seq DESC LIMIT 30",
        "test = 'x' ORDER BY created DESC, seq DESC LIMIT 30",
    )
    # Constants.
    wanted = ["SELECT * FROM llmperf_records WHERE " + where for where in filters]  # noqa: S608
    wanted.append("SELECT * FROM llmperf_records ORDER BY created DESC, seq DESC LIMIT 30")
    wanted.append(
        "SELECT series_key, count(*), max(created) FROM llmperf_records GROUP BY series_key"
    )
    with store._database.reading() as connection:

        def plan(query):
            return " ".join(
                row[3] for row in connection.execute(text("EXPLAIN QUERY PLAN " + query))
            )

        for query in wanted:
            assert "USING" in plan(query), query
            assert "TEMP B-TREE" not in plan(query), query
        assert "USING" not in plan("SELECT * FROM llmperf_records WHERE model = 'x'")
