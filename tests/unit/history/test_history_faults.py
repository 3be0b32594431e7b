"""What happens to records when the store cannot take them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock
from sqlalchemy import event
from support.history_records import record

from pytest_llmperf.errors import StoreError
from pytest_llmperf.history.problems import StoreUnavailable
from pytest_llmperf.history.spool import Spool
from pytest_llmperf.history.store import open_for_session, open_store

HERE = Path(__file__).parents[2]
URL = "sqlite:///history.db"


def ids(store):
    return sorted(r.id for r in store.records())


def put_aside(folder):
    """Damaged databases that were kept, without SQLite's own files beside them."""
    return [
        p
        for p in folder.iterdir()
        if ".corrupt-" in p.name and not p.name.endswith(("-wal", "-shm"))
    ]


def limit(store, pragma):
    """Apply a PRAGMA to every connection the store makes from now on."""
    store._database.dispose()
    event.listen(
        store._database._engine,
        "connect",
        lambda connection, _record: connection.execute(f"PRAGMA {pragma}"),
    )


# URLs


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("history.db", "is not a URL. Did you mean 'sqlite:///history.db'"),
        ("", "is not a URL"),
        ("sqlite", "is not a URL"),
        ("sqlit:///history.db", "dialect 'sqlit' is not supported. Did you mean 'sqlite'"),
        ("mysql://user:geheim@host/db", "dialect 'mysql' is not supported"),
        ("postgresql+psycopg2://host/db", "Did you mean 'postgresql+psycopg'"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no plain file"),
        ("postgresql://user:geheim@host", "names no database"),
        ("postgresql://user:geheim@host:port/db", "is not a URL"),
    ],
)
def test_a_url_that_cannot_be_used_names_itself_and_the_choices(tmp_path, url, said):
    """And never shows a password."""
    with pytest.raises(StoreError) as caught:
        open_for_session(url, folder=tmp_path)
    assert said in str(caught.value)
    assert "postgresql+psycopg://user@host/database" in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_a_missing_driver_names_the_extra(tmp_path, monkeypatch):
    """Without psycopg a PostgreSQL store is an error with the command that installs it."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"pip install 'pytest-llmperf\[postgresql\]'"):
        open_store("postgresql://host/db", folder=tmp_path)


# Places


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="needs /proc, a folder that not even root can write"
)
def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    """Neither the store nor its spool can be there, so even a session cannot go on."""
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        open_store("sqlite:////proc/llmperf/history.db", folder=tmp_path)
    with pytest.raises(StoreError, match="spool /proc/llmperf"):
        open_for_session("sqlite:////proc/llmperf/history.db", folder=tmp_path)


def test_a_file_in_the_folders_place_is_an_error(tmp_path):
    """The path is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file.* cannot be written"):
        open_store("sqlite:///file/history.db", folder=tmp_path)


def test_a_folder_in_the_stores_place_is_an_error(tmp_path):
    """SQLite's 'unable to open' is explained."""
    (tmp_path / "history.db").mkdir()
    with pytest.raises(StoreError, match="cannot be opened"):
        open_store(URL, folder=tmp_path)


def test_a_read_only_store_sends_records_to_the_spool(tmp_path):
    """The reason is in the notice."""
    with open_store(URL, folder=tmp_path) as store:
        limit(store, "query_only=ON")
        assert store.add(record("a")) is False
        assert "read-only" in store.notices[0]


# Locked


def test_a_locked_store_is_waited_for_only_so_long(tmp_path):
    """The record goes to the spool, the next session sends it, and its outcome follows."""
    open_store(URL, folder=tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "history.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store = open_store(URL, folder=tmp_path, busy_s=0.05)
        assert store.add(record("a")) is False
        assert store.update_outcome("a", "PASS") is False
        store.close()
        assert "is locked: another process" in store.notices[0]
        assert "2 entries wait in" in store.notices[-1]
    with open_store(URL, folder=tmp_path) as later:
        assert [(r.id, r.outcome) for r in later.records()] == [("a", "PASS")]
        assert "2 spooled entries" in later.notices[0]
    assert not (tmp_path / "history.db.spool.jsonl").exists()


def test_a_store_that_is_free_again_gets_the_spool_when_the_session_closes(tmp_path):
    """A short lock costs nothing but the detour; entries keep their order."""
    store = open_store(URL, folder=tmp_path, busy_s=0.05)
    store.add(record("before"))
    with closing(sqlite3.connect(tmp_path / "history.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store.add(record("a"))
        store.update_outcome("a", "FAIL")
        store.update_outcome("before", "PASS")
    store.close()
    with open_store(URL, folder=tmp_path) as later:
        assert sorted((r.id, r.outcome) for r in later.records()) == [
            ("a", "FAIL"),
            ("before", "PASS"),
        ]
        assert later.notices == []


def test_a_store_locked_while_it_is_made_is_unavailable_not_endless(tmp_path):
    """The lock file's holder is waited for as long as the busy timeout."""
    with FileLock(tmp_path / "history.db.lock"):
        with pytest.raises(StoreUnavailable, match=r"was held by another process for 0\.05 s"):
            open_store(URL, folder=tmp_path, busy_s=0.05)
        with open_for_session(URL, folder=tmp_path, busy_s=0.05) as store:
            assert store.add(record("a")) is False
    with open_store(URL, folder=tmp_path) as later:
        assert ids(later) == ["a"]


# Full disk


def test_a_full_store_sends_records_to_the_spool(tmp_path):
    """A database that may not grow takes no half record; what was there stays readable."""
    store = open_store(URL, folder=tmp_path)
    store.add(record("small"))
    limit(store, "max_page_count=1")
    assert store.add(record("big", label="x" * 100_000)) is False
    assert "the disk is full" in store.notices[0]
    assert ids(store) == ["small"]
    store._database.dispose()
    with open_store(URL, folder=tmp_path) as later:
        assert ids(later) == ["big", "small"]


FULL = """
import json, resource, sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from support.history_records import record
from pytest_llmperf.errors import StoreError
from pytest_llmperf.history.store import open_store
store = open_store("sqlite:///history.db", folder=Path(sys.argv[2]))
store.add(record("first"))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
said = []
for i in range(3):
    try:
        said.append(store.add(record(f"r{i}", label="x" * 20_000)))
    except StoreError as error:
        said.append(str(error))
if sys.argv[4] == "recover":
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
try:
    store.close()
except StoreError as error:
    said.append(str(error))
print(json.dumps(said))
"""


def full_disk(tmp_path, limit_bytes, end):
    """Add three records in a process whose files may not grow past a limit.

    What `add` returned or said.
    """
    command = [sys.executable, "-c", FULL, str(HERE), str(tmp_path), str(limit_bytes), end]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def test_a_disk_that_fills_up_in_mid_session_loses_nothing(tmp_path):
    """The spool takes the records when the operating system refuses the store's write.

    The next session sends them.
    """
    assert full_disk(tmp_path, 90_000, "stay full") == [False, False, False]
    with open_store(URL, folder=tmp_path) as later:
        assert ids(later) == ["first", "r0", "r1", "r2"]


def test_a_disk_too_full_for_the_spool_is_an_error_that_counts_what_is_lost(tmp_path):
    """Each call says it, and so does the end of the session; the store itself stays sound."""
    said = full_disk(tmp_path, 10, "stay full")
    assert all("cannot be used" in text for text in said[:3])
    assert "3 measured results could be kept neither in the store nor beside it" in said[3]
    with open_store(URL, folder=tmp_path) as later:
        assert ids(later) == ["first"]


def test_records_kept_in_memory_are_written_when_there_is_room_again(tmp_path):
    """Room at the end of the session is enough."""
    said = full_disk(tmp_path, 10, "recover")
    assert len(said) == 3
    with open_store(URL, folder=tmp_path) as later:
        assert ids(later) == ["first", "r0", "r1", "r2"]


# Damaged


def test_a_file_that_is_no_database_is_kept_aside(tmp_path):
    """Its bytes survive under a new name, and the session goes on with a new store and says so."""
    (tmp_path / "history.db").write_bytes(b"not a database, but somebody's work " * 100)
    with open_store(URL, folder=tmp_path) as store:
        store.add(record("a"))
        assert ids(store) == ["a"]
        (kept,) = put_aside(tmp_path)
        assert kept.read_bytes() == b"not a database, but somebody's work " * 100
        assert str(kept) in store.notices[0]
        assert "new, empty store" in store.notices[0]


def test_damage_in_the_middle_is_found_by_a_write_and_loses_no_new_record(tmp_path):
    """The first session spools, its end puts the file aside.

    A second damaged file gets a name of its own.
    """
    with open_store(URL, folder=tmp_path) as store:
        for i in range(40):
            store.add(record(f"old-{i}", label="x" * 2000))
    file = tmp_path / "history.db"
    content = bytearray(file.read_bytes())
    content[3 * 4096 :] = b"\xa5" * (len(content) - 3 * 4096)
    for name in ("new-1", "new-2"):
        file.write_bytes(content)
        with open_store(URL, folder=tmp_path) as store:
            store.add(record(name))
        with open_store(URL, folder=tmp_path) as later:
            assert ids(later) == [name]
    assert [p.read_bytes() == content for p in put_aside(tmp_path)] == [True, True]


def test_only_one_of_two_sessions_puts_a_damaged_file_aside(tmp_path):
    """The second to notice goes on with the store that the first made."""
    first, second = open_store(URL, folder=tmp_path), open_store(URL, folder=tmp_path)
    from pytest_llmperf.history.problems import StoreCorrupt

    first._database.put_aside(StoreCorrupt("seen by both"))
    first.add(record("a"))
    assert second._database.put_aside(StoreCorrupt("seen by both")) == []
    second.add(record("b"))
    assert ids(first) == ["a", "b"]
    first.close()
    second.close()
    assert len(put_aside(tmp_path)) == 1


# The spool


def test_what_a_store_will_never_take_is_kept_and_named(tmp_path):
    """Half a line, an outcome without a record and something else go to the .refused file.

    The rest is sent.
    """
    open_store(URL, folder=tmp_path).close()
    path = tmp_path / "history.db.spool.jsonl"
    spool = Spool(path)
    spool.append(record("a"))
    with path.open("ab") as file:
        file.write(
            b'{"outcome":{"id":"nobody","outcome":"PASS","claims":[]}}\n[1]\n{"add":{"id":"half'
        )
    spool.append(record("b"))
    with open_store(URL, folder=tmp_path) as store:
        assert ids(store) == ["a", "b"]
        assert sum("was refused" in notice for notice in store.notices) == 3
        assert "'nobody' is not in the store" in " ".join(store.notices)
    assert len(Path(f"{path}.refused").read_bytes().splitlines()) == 3
    assert not path.exists()


def test_a_spool_that_could_not_be_sent_whole_is_sent_again(tmp_path):
    """An interruption in the middle of sending neither loses nor doubles."""
    spool = Spool(tmp_path / "spool.jsonl")
    for name in ("a", "b", "c"):
        spool.append(record(name))
    got = []

    def take_two(entries):
        if len(got) + len(entries) > 2:
            raise StoreUnavailable("gone again")
        got.extend(entry.id for entry in entries)

    with pytest.raises(StoreUnavailable):
        spool.send(take_two)
    assert spool.pending() == 3
    with open_store(URL, folder=tmp_path) as store:
        assert spool.send(store.add_many)[0] == 3
        assert ids(store) == ["a", "b", "c"]


def test_a_spool_that_another_process_holds_is_left_to_it(tmp_path):
    """It is most likely sending; the session goes on and says so."""
    spool = Spool(tmp_path / "spool.jsonl", wait_s=0.05)
    spool.append(record("a"))
    with FileLock(tmp_path / "spool.jsonl.lock"):
        sent, said = spool.send(lambda _entries: None)
        assert (sent, "locked by another process" in said[0]) == (0, True)


KILLED = """
import os, signal, sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from support.history_records import record
from pytest_llmperf.history.store import open_store
store = open_store("sqlite:///history.db", folder=Path(sys.argv[2]))
for i in range(5):
    store.add(record(f"r{i}"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_session_keeps_every_record_it_added(tmp_path):
    """No clean end is needed."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(HERE), str(tmp_path)], check=False, timeout=60
    )
    assert done.returncode == -9
    with open_store(URL, folder=tmp_path) as store:
        assert ids(store) == [f"r{i}" for i in range(5)]


def test_the_password_is_in_no_message(tmp_path):
    """Neither in the error nor in the name of the spool."""
    url = "postgresql://user:geheim@127.0.0.1:1/db"
    with pytest.raises(StoreUnavailable) as caught:
        open_store(url, folder=tmp_path, busy_s=1)
    assert "geheim" not in str(caught.value)
    assert "user:***@127.0.0.1:1/db" in str(caught.value)


def test_start_up_loads_no_database():
    """The plugin alone imports neither SQLAlchemy nor this package's history."""
    wanted = "[m for m in sys.modules if m.startswith(('sqlalchemy', 'pytest_llmperf.history'))]"
    code = f"import sys, pytest_llmperf.plugin.hooks; print({wanted})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"
