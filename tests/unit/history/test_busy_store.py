"""A store that others keep busy is no outage: nothing is lost, and entries keep their order."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from support.history_records import record

from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import StoreError
from pytest_llmperf.history import spool as spool_module
from pytest_llmperf.history import store as store_module
from pytest_llmperf.history.problems import StoreBusy, StoreUnavailable
from pytest_llmperf.history.spool import Outcome, Spool
from pytest_llmperf.history.store import open_for_session, open_store

URL = "sqlite:///history.db"
SPOOL = "history.db.spool.jsonl"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """The waits of the spool are of no interest here."""
    monkeypatch.setitem(Spool.__init__.__kwdefaults__, "wait_s", 0.05)
    monkeypatch.setattr(spool_module, "_GIVE_WAY_S", 0.0)


@pytest.fixture
def store(tmp_path: Path):
    """A session's store."""
    store = open_for_session(URL, folder=tmp_path, busy_s=0.05)
    yield store
    store._database.dispose()


@contextmanager
def busy(folder: Path):
    """Another process that writes for longer than anybody waits."""
    with closing(sqlite3.connect(folder / "history.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def outcomes(folder: Path) -> list[tuple[str, str]]:
    with open_store(URL, folder=folder) as store:
        return sorted((entry.id, entry.outcome) for entry in store.records())


def outcome(name: str, text: str) -> Outcome:
    return Outcome(id=name, outcome=text, claims=())


def test_an_outcome_waits_behind_its_record_while_another_process_has_the_spool(store, tmp_path):
    """The record lies in the spool, so the outcome must not go to the store before it."""
    with busy(tmp_path):
        assert store.add(record("a", outcome="UNFINISHED")) is False
    with FileLock(tmp_path / f"{SPOOL}.lock"):
        store.update_outcome("a", "PASS")
        store.close()
    assert outcomes(tmp_path) == [("a", "PASS")]
    assert not Spool(tmp_path / SPOOL).has_entries


def test_an_outcome_waits_behind_its_record_while_another_process_sends(store, tmp_path):
    """The same with the lock of the sender."""
    with busy(tmp_path):
        store.add(record("a", outcome="UNFINISHED"))
    with FileLock(tmp_path / f"{SPOOL}.sending.lock"):
        store.update_outcome("a", "PASS")
        store.close()
        assert "2 entries wait in" in store.notices[-1]
    assert outcomes(tmp_path) == [("a", "PASS")]


def test_entries_that_could_not_join_the_others_are_sent_after_them(store, tmp_path):
    """Also when the spool's file can be used again before they were sent."""
    with busy(tmp_path):
        store.add(record("a", outcome="UNFINISHED"))
        with FileLock(tmp_path / f"{SPOOL}.lock"):
            store.update_outcome("a", "FAIL")
        store.update_outcome("a", "PASS")
    store.close()
    assert outcomes(tmp_path) == [("a", "PASS")]


def test_a_clock_that_is_set_back_does_not_change_the_order(store, tmp_path, monkeypatch):
    """The files of one entry are named by the time, which then goes on by itself."""
    times = iter(range(1000, 0, -10))
    monkeypatch.setattr(spool_module.time, "time_ns", lambda: next(times))
    with busy(tmp_path), FileLock(tmp_path / f"{SPOOL}.lock"):
        store.add(record("a", outcome="UNFINISHED"))
        store.update_outcome("a", "FAIL")
        store.update_outcome("a", "PASS")
    store.close()
    assert outcomes(tmp_path) == [("a", "PASS")]


def test_a_busy_store_is_tried_again_in_the_same_session(store, tmp_path, monkeypatch):
    """What waits is sent first, and the rest goes to the store itself."""
    with busy(tmp_path):
        assert store.add(record("a", outcome="UNFINISHED")) is False
    monkeypatch.setattr(store_module.time, "monotonic", lambda: store._retry_at_s)
    assert store.update_outcome("a", "PASS") is True
    assert store.add(record("b")) is True
    assert not Spool(tmp_path / SPOOL).has_entries
    assert any("1 spooled entries were sent" in notice for notice in store.notices)


def test_a_store_that_fails_is_tried_again_less_and_less_often(store):
    """A busy one after the time for which it was waited, one that is gone after longer times."""
    waits = []
    for error in [StoreBusy("busy"), *[StoreUnavailable("gone")] * 8]:
        store._set_unavailable(error)
        waits.append(round(store._retry_at_s - store_module.time.monotonic(), 1))
    assert waits[0] <= 0.1
    assert waits[1:] == pytest.approx([30, 60, 120, 240, 480, 600, 600, 600], abs=0.5)


def test_a_sender_that_was_killed_has_its_entries_sent_first(store, tmp_path):
    """They are older than what was added since."""
    spool = Spool(tmp_path / SPOOL)
    spool.append(record("a", outcome="UNFINISHED"))
    spool.append(outcome("a", "FAIL"))
    (tmp_path / SPOOL).replace(tmp_path / f"{SPOOL}.sending")
    spool.append(outcome("a", "PASS"))
    store.close()
    assert outcomes(tmp_path) == [("a", "PASS")]


def test_entries_can_be_added_while_others_are_sent(tmp_path):
    """Nobody waits for a sender, and none of the two loses anything."""
    sender, other = Spool(tmp_path / SPOOL), Spool(tmp_path / SPOOL)
    for number in range(3):
        sender.append(record(f"r{number}"))
    taken = []

    def deliver(entries):
        taken.extend(entry.id for entry in entries)
        other.append(record("late"))

    assert sender.send(deliver)[0] == 3
    assert taken == ["r0", "r1", "r2"]
    assert list(tmp_path.glob(f"{SPOOL}.one-*")) == []
    assert other.pending() == 1


def test_many_entries_are_sent_in_few_transactions(tmp_path):
    """Of 64 entries each, so that other writers have their turn in between."""
    spool, batches = Spool(tmp_path / SPOOL), []
    for number in range(150):
        spool.append(record(f"r{number}"))
    assert spool.send(lambda entries: batches.append(len(entries)))[0] == 150
    assert batches == [64, 64, 22]


def test_one_entry_that_is_refused_keeps_no_other_back(tmp_path):
    """The batch that has it is sent one by one."""
    spool = Spool(tmp_path / SPOOL)
    spool.append(record("a"))
    spool.append(outcome("nobody", "PASS"))
    with (tmp_path / SPOOL).open("ab") as file:
        file.write(b'{"add":' + b"[" * 100_000 + b"\n")
    spool.append(record("b"))
    with open_store(URL, folder=tmp_path) as store:
        assert sorted(entry.id for entry in store.records()) == ["a", "b"]
        assert sum("was refused" in notice for notice in store.notices) == 2


def test_a_spool_that_cannot_be_used_is_no_error_of_a_sound_store(tmp_path):
    """A folder in its place, as another user's file would be."""
    (tmp_path / f"{SPOOL}.lock").mkdir()
    (tmp_path / SPOOL).write_bytes(b"{}\n")
    with open_for_session(URL, folder=tmp_path, busy_s=0.05) as store:
        assert store.add(record("a")) is True
        assert any("cannot be used" in notice for notice in store.notices)
    with busy(tmp_path), open_for_session(URL, folder=tmp_path, busy_s=0.05) as store:
        assert store.add(record("b")) is False
    (tmp_path / f"{SPOOL}.lock").rmdir()
    assert [name for name, _ in outcomes(tmp_path)] == ["a", "b"]


def test_what_can_be_written_nowhere_is_still_an_error(store, tmp_path):
    """And written in its place once that is possible."""
    with busy(tmp_path):
        store.add(record("first"))
        spool = store._spool
        store._spool = Broken()
        with pytest.raises(StoreError, match="no space"):
            store.add(record("second", outcome="UNFINISHED"))
        store._spool = spool
        store.update_outcome("second", "PASS")
    store.close()
    assert outcomes(tmp_path) == [("first", record("x").outcome), ("second", "PASS")]


class Broken:
    """A spool on a full disk."""

    path = "spool"

    def append(self, entry: Record) -> None:
        """Raise."""
        raise StoreError(f"no space for {entry.id}")


def test_a_spool_is_read_in_pieces_of_a_bounded_size(tmp_path, monkeypatch):
    """A file without an end of line is refused piece by piece; entries around it are sent."""
    monkeypatch.setattr(spool_module, "_LARGEST_LINE_BYTES", 20_000)
    monkeypatch.setattr(spool_module, "_BATCH_BYTES", 25_000)
    spool = Spool(tmp_path / SPOOL)
    spool.append(record("before"))
    with spool.path.open("ab") as file:
        file.write(b"x" * 70_000)
    spool.append(record("after"))
    batches = []
    sent, refused = spool.send(lambda entries: batches.append([entry.id for entry in entries]))
    assert [entry for batch in batches for entry in batch] == ["before", "after"]
    assert (sent, len(refused)) == (2, 4)
    assert spool.refused_path.read_bytes().count(b"x") == 70_000
    assert not spool.has_entries
