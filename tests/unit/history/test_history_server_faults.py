"""What happens to records when a PostgreSQL server cannot take them."""

from __future__ import annotations

import psycopg
import pytest
from msgspec.structs import replace
from sqlalchemy import event
from support.history_records import metric, record
from support.postgresql_server import binaries, running

from pytest_llmperf.errors import StoreError
from pytest_llmperf.history import store as store_module
from pytest_llmperf.history.problems import StoreUnavailable
from pytest_llmperf.history.store import open_for_session, open_store


def ids(store):
    return sorted(r.id for r in store.records())


@pytest.fixture(scope="module")
def server():
    folder = binaries()
    if folder is None:
        pytest.skip(
            "PostgreSQL's server programs (initdb, pg_ctl) are not installed: "
            "faults were not tried on PostgreSQL"
        )
    with running(folder) as started:
        yield started


def test_a_server_that_is_not_there_costs_no_record(server, tmp_path):
    """A session spools beside the project; when the database is there, the next one sends."""
    url = server.url("later")
    with pytest.raises(StoreUnavailable, match=r'cannot be reached.*"later" does not exist'):
        open_store(url, folder=tmp_path)
    with open_for_session(url, folder=tmp_path) as store:
        assert store.add(record("a")) is False
    assert "1 entries wait in" in store.notices[-1]
    assert [p.parent.name for p in tmp_path.rglob("spool-*.jsonl")] == [".llmperf"]
    server.execute("CREATE DATABASE later")
    with open_store(url, create=False, folder=tmp_path) as later:
        assert ids(later) == ["a"]


def test_a_connection_cut_in_mid_session_is_made_anew(server, tmp_path):
    """The next record is stored also after a server restarts or a proxy drops the connection."""
    url = server.database()
    with open_store(url, folder=tmp_path) as store:
        store.add(record("a"))
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'store_%'"
        )
        assert store.add(record("b")) is True
        assert ids(store) == ["a", "b"]


def test_a_table_locked_on_the_server_is_waited_for_only_so_long(server, tmp_path):
    """As on SQLite."""
    url = server.database()
    store = open_store(url, folder=tmp_path, busy_s=0.05)
    with psycopg.connect(url.replace("+psycopg", "")) as other:
        other.execute("LOCK TABLE llmperf_records IN ACCESS EXCLUSIVE MODE")
        assert store.add(record("a")) is False
        assert "lock timeout" in store.notices[0]
        store.close()
    with open_store(url, folder=tmp_path) as later:
        assert ids(later) == ["a"]


def test_a_value_the_server_refuses_is_the_callers_error(server, tmp_path):
    """Not a reason to spool what would be refused for ever."""
    with (
        open_store(server.database(), folder=tmp_path) as store,
        pytest.raises(StoreError, match=r"refused a value.*integer out of range"),
    ):
        store.add(record("a", metrics=(replace(metric(), n=2**40),)))


@pytest.fixture
def retries_at_once(monkeypatch):
    """A store that failed is tried again at the next write."""
    monkeypatch.setattr(store_module, "RETRY_S", (0.0, 0.0))


def test_a_server_that_restarts_in_a_session_costs_nothing(server, tmp_path, retries_at_once):
    """What came meanwhile waits, in its order, and is sent as soon as the server is back."""
    url = server.database()
    with open_store(url, folder=tmp_path) as store:
        store.add(record("a", outcome="UNFINISHED"))
        server.stop()
        assert store.update_outcome("a", "PASS") is False
        assert store.add(record("b", outcome="UNFINISHED")) is False
        assert store.update_outcome("b", "FAIL") is False
        server.start()
        assert store.add(record("c")) is True
        outcomes = {entry.id: entry.outcome for entry in store.records()}
    assert (outcomes["a"], outcomes["b"]) == ("PASS", "FAIL")
    assert sorted(outcomes) == ["a", "b", "c"]


def test_a_connection_lost_in_a_transaction_costs_nothing(server, tmp_path, retries_at_once):
    """The server ends the session between two statements: all of it is written again."""
    url = server.database()
    with open_store(url, folder=tmp_path) as store:
        cuts = ["the first"]

        def cut(_connection, _cursor, statement, *_):
            if cuts and statement.startswith("INSERT INTO llmperf_documents"):
                cuts.clear()
                server.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname LIKE 'store_%'"
                )

        event.listen(store._database._engine, "before_cursor_execute", cut)
        assert store.add(record("a")) is False
        assert store.add(record("b")) is True
        assert not cuts
        assert ids(store) == ["a", "b"]


def test_a_server_that_only_reads_costs_nothing(server, tmp_path, retries_at_once):
    """It answers as a standby does."""
    url = server.database()
    name = url.partition("@/")[2].partition("?")[0]
    open_store(url, folder=tmp_path).close()
    server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with open_for_session(url, folder=tmp_path) as store:
        assert store.add(record("a")) is False
        assert ids(store) == []
        assert "read-only transaction" in " ".join(store.notices)
    server.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    with open_store(url, folder=tmp_path) as later:
        assert ids(later) == ["a"]


def test_a_server_without_a_free_connection_is_tried_again_soon(server, tmp_path):
    """That is no outage."""
    url = server.database()
    name = url.partition("@/")[2].partition("?")[0]
    open_store(url, folder=tmp_path).close()
    server.execute(f"CREATE ROLE app LOGIN SUPERUSER; ALTER DATABASE {name} OWNER TO app")
    server.execute("ALTER ROLE app NOSUPERUSER CONNECTION LIMIT 1")
    for table in ("records", "metrics", "documents", "alembic_version"):
        server.execute(f"ALTER TABLE llmperf_{table} OWNER TO app", name)
    theirs = url.replace("postgres@", "app@")
    with (
        open_store(theirs, folder=tmp_path),
        open_for_session(theirs, folder=tmp_path, busy_s=0.05) as store,
    ):
        assert store.add(record("a")) is False
        assert "it has no connection left" in store.notices[0]
    with open_store(theirs, folder=tmp_path) as later:
        assert ids(later) == ["a"]
