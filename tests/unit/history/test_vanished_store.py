"""A store whose file is deleted, moved or replaced under a session loses nothing."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support.history_records import record

from pytest_llmperf.history.database import Database
from pytest_llmperf.history.store import Store, open_for_session, open_store

FOLDER, NAME = "kept", "history.db"
URL = f"sqlite:///{FOLDER}/{NAME}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A session's store, in a folder of its own, with two runs of an earlier session."""
    with open_store(URL, folder=tmp_path) as earlier:
        earlier.add_many([record("old-1"), record("old-2")])
    return open_for_session(URL, folder=tmp_path)


def delete(file: Path) -> None:
    """What `rm history.db*` does."""
    for part in file.parent.glob(f"{file.name}*"):
        part.unlink()


def delete_folder(file: Path) -> None:
    """What `git clean -fdx` does."""
    shutil.rmtree(file.parent)


def move(file: Path) -> None:
    """What `mv history.db away.db` does."""
    file.rename(file.with_name("away.db"))


def replace(file: Path) -> None:
    """What a cache that is restored does: another store takes its place."""
    with open_store("sqlite:///other.db", folder=file.parent) as other:
        other.add(record("of the other"))
    file.with_name("other.db").replace(file)


def garbage(file: Path) -> None:
    """Something else takes its place."""
    other = file.with_name("garbage")
    other.write_bytes(b"no database" * 1000)
    other.replace(file)


WAYS = (delete, delete_folder, move, replace, garbage)


def ids(folder: Path) -> set[str]:
    """The ids of all records, each with the outcome that it ended with."""
    with open_store(URL, folder=folder) as store:
        return {f"{entry.id} {entry.outcome}" for entry in store.records()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n_after", [0, 2])
def test_a_session_whose_store_goes_away_loses_nothing(store, tmp_path, way, n_after):
    """Neither what it had written before, nor what it writes after."""
    store.add(record("before", outcome="UNFINISHED"))
    store.update_outcome("before", "PASS")
    store.add(record("open", outcome="UNFINISHED"))
    way(tmp_path / FOLDER / NAME)
    for number in range(n_after):
        assert store.add(record(f"after-{number}", outcome="PASS"))
        store.update_outcome("open", "FAIL")
    store.close()
    expected = {"before PASS", "open FAIL" if n_after else "open UNFINISHED"}
    assert expected | {f"after-{number} PASS" for number in range(n_after)} <= ids(tmp_path)
    assert "was deleted, moved or replaced while this session ran" in " ".join(store.notices)


@pytest.mark.parametrize("way", [delete, delete_folder])
def test_what_others_had_stored_in_a_deleted_file_is_kept_beside_it(store, tmp_path, way):
    """It would be gone as soon as this session closes the file."""
    store.add(record("before"))
    way(tmp_path / FOLDER / NAME)
    store.close()
    (copy,) = (tmp_path / FOLDER).glob("history.db.deleted-*")
    assert str(copy) in " ".join(store.notices)
    with closing(sqlite3.connect(copy)) as connection:
        rows = connection.execute("select id from llmperf_records").fetchall()
    assert {row[0] for row in rows} == {"old-1", "old-2", "before"}


def test_a_file_that_was_moved_is_not_copied(store, tmp_path):
    """It lies where it was moved to."""
    store.add(record("before"))
    move(tmp_path / FOLDER / NAME)
    store.close()
    assert not list((tmp_path / FOLDER).glob("*.deleted-*"))


def test_a_place_that_cannot_be_written_any_more_sends_all_to_the_spool(store, tmp_path):
    """A folder has the name of the file: the spool beside it takes everything."""
    store.add(record("before", outcome="PASS"))
    file = tmp_path / FOLDER / NAME
    delete(file)
    file.mkdir()
    assert not store.add(record("after", outcome="PASS"))
    store.close()
    file.rmdir()
    assert {"before PASS", "after PASS"} <= ids(tmp_path)


def test_without_the_look_at_the_file_records_are_lost(store, tmp_path, monkeypatch):
    """The checks above can fail."""
    monkeypatch.setattr(Database, "require_in_place", lambda _database: None)
    store.add(record("before"))
    delete(tmp_path / FOLDER / NAME)
    assert store.add(record("after"))
    store.close()
    assert ids(tmp_path) == set()
