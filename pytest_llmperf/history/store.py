"""The history: every finished run, written at once, and read back by series.

store = open_store("sqlite:///.llmperf/history.db")
store.add(record)
for record in store.records(series=series_key(record), limit=30): ...
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pytest_llmperf.core.record import ClaimRecord, Record
from pytest_llmperf.errors import StoreError
from pytest_llmperf.history import queries
from pytest_llmperf.history.address import parse
from pytest_llmperf.history.database import Database
from pytest_llmperf.history.problems import (
    StoreBusy,
    StoreCorrupt,
    StoreMoved,
    StoreUnavailable,
)
from pytest_llmperf.history.reader import Reader
from pytest_llmperf.history.spool import Entry, Outcome, Spool

BUSY_S = 10.0
"""How long a locked or silent store is waited for, in seconds."""
RETRY_S = (30.0, 600.0)
"""After how long a store that failed is tried again, at first and at most, in seconds.

One that others only kept busy is tried again after the time for which it was waited.
"""


def open_store(
    url: str, *, create: bool = True, folder: Path | None = None, busy_s: float = BUSY_S
) -> Store:
    """Open a store, bring its schema up to date, and send what earlier sessions left in the spool.

    `folder` is where relative SQLite files and the spool of a server live (default: the working
    directory).

    Raises:
        StoreMissing: nothing there, and `create` is False.
        StoreUnavailable: locked, unreachable, not writable, disk full.
        StoreError: bad URL, unknown dialect, missing driver, written by a newer version.
    """
    store = _make(url, folder, busy_s)
    try:
        store.reconnect(create=create or store.has_spooled)
    except BaseException:
        store.close()
        raise
    return store


def open_for_session(url: str, *, folder: Path | None = None, busy_s: float = BUSY_S) -> Store:
    """Open a store as `open_store` does, even if it is unavailable now.

    What is measured then goes to the spool, with a notice.

    Raises:
        StoreError: as `open_store`, or neither the store nor its spool can be written.

    """
    store = _make(url, folder, busy_s)
    try:
        store.reconnect(create=True)
    except StoreUnavailable as error:
        store.give_up(error)
    except BaseException:
        store.close()
        raise
    return store


class Store(Reader):
    """An open history. One process, one thread; several processes may each open the same one.

    `notices` are sentences the user should read: a damaged file put aside, records sent from or
    left in the spool.
    """

    def __init__(self, database: Database, spool: Spool) -> None:
        super().__init__(database)
        self.notices: list[str] = []
        self._spool = spool
        self._unavailable = False
        self._retry_s = RETRY_S[0]
        self._retry_at_s = 0.0
        self._has_spooled_here = False
        self._unsaved: list[Entry] = []
        self._written_ids: list[str] = []

    @property
    def has_spooled(self) -> bool:
        """Whether earlier runs left something to send."""
        return self._spool.has_entries

    @property
    def public_url(self) -> str:
        """The store's URL, without a password."""
        return self._database.address.public_url

    def add(self, record: Record) -> bool:
        """Write a record, durable when this returns.

        A record whose id is already there is left as it is.

        Returns whether it is in the store; False means that it is in the spool.

        Raises:
            StoreError: neither could be written (the record is tried again at the next call and at
                `close`).
        """
        return self._save(record)

    def add_many(self, records: Sequence[Record]) -> int:
        """Write records in one transaction, past the spool. Returns how many were not there yet.

        Raises:
            StoreError: none of them was written.

        """
        return queries.write_many(self._database, records)

    def known(self, record_ids: Sequence[str]) -> dict[str, str]:
        """Of these ids, those in the store, with their outcomes."""
        return queries.outcomes(self._database, record_ids)

    def update_outcome(
        self,
        record_id: str,
        outcome: str,
        claims: tuple[ClaimRecord, ...] = (),
        agreement: dict[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> bool:
        """Note what became of a record: its outcome and claims, its agreement unless None.

        `extra` is added to the record's. Returns what `add` does.

        Raises:
            StoreError: no such record, or as `add`.

        """
        return self._save(
            Outcome(
                id=record_id,
                outcome=outcome,
                claims=claims,
                agreement=agreement,
                extra=dict(extra or {}),
            )
        )

    def close(self) -> None:
        """Send what the spool holds if the store failed before, then close.

        What this session had written to a file that is not at its place any more is written again.

        Raises:
            StoreError: records could be kept nowhere; it says how many.

        """
        try:
            self._flush()
        finally:
            self._database.dispose()

    def reconnect(self, *, create: bool) -> None:
        """Prepare the schema and send the spool. Raises StoreError."""
        self.notices += self._database.prepare(create=create)
        try:
            self._send_spool()
        except StoreCorrupt as damage:  # found only when pages are read; the spool is still whole
            self.notices += self._database.put_aside(damage)
            self._send_spool()
        self._require_sent()
        self._unavailable = False
        self._retry_s = RETRY_S[0]

    def _require_sent(self) -> None:
        """Raise StoreBusy while entries of this session are in the spool.

        What comes after them must not be written before them.
        """
        if self._has_spooled_here and self.has_spooled:
            raise StoreBusy(
                f"entries of this session wait in {self._spool.path}, which another process sends."
            )
        self._has_spooled_here = False

    def give_up(self, error: StoreError) -> None:
        """From now on everything goes to the spool.

        Raises StoreError if that cannot be written either.
        """
        self._spool.check()
        self._set_unavailable(error)

    def _save(self, entry: Entry) -> bool:
        self._require_in_place()
        if self._unavailable and time.monotonic() >= self._retry_at_s:
            self._try_again()
        if isinstance(entry, Record):
            self._written_ids.append(entry.id)
        if self._unavailable or not self._try_to_write(entry):
            self._spool_unsaved(entry)
        return not self._unavailable

    def _try_again(self) -> None:
        try:
            self._resume()
        except StoreUnavailable as error:
            self._set_unavailable(error)

    def _try_to_write(self, entry: Entry) -> bool:
        try:
            queries.write(self._database, entry)
        except StoreMoved as moved:
            self._hold_what_was_written(moved)
            return False
        except StoreUnavailable as error:
            self._set_unavailable(error)
            return False
        return True

    def _set_unavailable(self, error: StoreError) -> None:
        self._unavailable = True
        self._wait_before_retry(error)
        notice = (
            f"{error} What is measured goes to {self._spool.path}; this session sends it when the "
            "store can be written again, or the next session sends it."
        )
        if notice not in self.notices:
            self.notices.append(notice)

    def _wait_before_retry(self, error: StoreError) -> None:
        if isinstance(error, StoreBusy):
            wait_s = min(self._database.busy_s, self._retry_s)
        else:
            wait_s = self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_S[1])
        self._retry_at_s = time.monotonic() + wait_s

    def _spool_unsaved(self, *entries: Entry) -> None:
        self._unsaved += entries
        while self._unsaved:
            self._spool.append(self._unsaved[0])
            self._has_spooled_here = True
            self._unsaved.pop(0)

    def _send_spool(self) -> None:
        sent, refused = self._spool.send(
            lambda entries: queries.write_spooled(self._database, entries)
        )
        self.notices += refused
        if sent:
            self.notices.append(f"{sent} spooled entries were sent to {self.public_url}.")

    def _flush(self) -> None:
        self._require_in_place()
        if not self._unavailable:
            return
        try:
            self._resume()
        except StoreError as error:
            self._flush_failed(error)

    def _require_in_place(self) -> None:
        """Look once more whether the file is at its place, where this session wrote to it."""
        if self._unavailable or not self._written_ids:
            return
        try:
            self._database.require_in_place()
        except StoreMoved as moved:
            self._hold_what_was_written(moved)

    def _hold_what_was_written(self, moved: StoreMoved) -> None:
        """Take this session's records out of the file that is gone, to write them anew."""
        try:
            written = queries.of_ids(self._database, self._written_ids)
        except StoreError:
            written = []
        copy = self._database.keep_deleted()
        kept_as = "" if copy is None else f" All that it held was kept as {copy}."
        again = f"The {len(written)} runs that this session had stored are stored again"
        self.notices.append(f"{moved} {again}, at its old place.{kept_as}")
        self._unsaved = [*written, *self._unsaved]
        self._database.dispose()
        self._unavailable = True
        self._retry_at_s = 0.0

    def _resume(self) -> None:
        """Send what waits, in its order. Raises StoreError."""
        self.reconnect(create=True)
        try:
            self._write_unsaved()
        except StoreError:
            self._unavailable = True
            raise

    def _write_unsaved(self) -> None:
        while self._unsaved:
            queries.write(self._database, self._unsaved[0])
            self._unsaved.pop(0)

    def _flush_failed(self, error: StoreError) -> None:
        with contextlib.suppress(StoreError):
            self._spool_unsaved()
        self._note_waiting_entries()
        if self._unsaved:
            n_lost = f"{len(self._unsaved)} measured results"
            raise StoreError(f"{n_lost} could be kept neither in the store nor beside it. {error}")

    def _note_waiting_entries(self) -> None:
        waiting = self._spool.pending()
        if waiting:
            self.notices.append(
                f"{waiting} entries wait in {self._spool.path} for the next session."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _make(url: str, folder: Path | None, busy_s: float) -> Store:
    address = parse(url, folder or Path.cwd())
    return Store(Database(address, busy_s=busy_s), Spool(address.spool))
