"""The history: every finished run, written at once, and read back by series.

store = open_store("sqlite:///.llmperf/history.db")
store.add(record)
for record in store.records(series=series_key(record), limit=30): ...
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pytest_llmperf.core.record import ClaimRecord, Record
from pytest_llmperf.errors import StoreError
from pytest_llmperf.history import queries
from pytest_llmperf.history.address import parse
from pytest_llmperf.history.database import Database
from pytest_llmperf.history.problems import StoreBusy, StoreCorrupt, StoreUnavailable
from pytest_llmperf.history.results import MeasuredMetric, Point, Series
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


class Store:
    """An open history. One process, one thread; several processes may each open the same one.

    `notices` are sentences the user should read: a damaged file put aside, records sent from or
    left in the spool.
    """

    def __init__(self, database: Database, spool: Spool) -> None:
        self.notices: list[str] = []
        self._database = database
        self._spool = spool
        self._unavailable = False
        self._retry_s = RETRY_S[0]
        self._retry_at_s = 0.0
        self._has_spooled_here = False
        self._unsaved: list[Entry] = []

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

    def records(
        self,
        *,
        test: str | None = None,
        series: str | None = None,
        environment: str | None = None,
        limit: int | None = None,
        since: str | None = None,
        oldest_first: bool = False,
    ) -> Iterator[Record]:
        """Records, newest first unless `oldest_first`.

        Those of the same moment in the order in which they were added.

        `test` is a node id, `series` a series key, `environment` an environment key, `since` an ISO
        8601 time (inclusive).

        No transaction is held while the caller works. Raises StoreError for a record of a newer
        schema.
        """
        query = queries.matching(test=test, series=series, environment=environment, since=since)
        return queries.records(self._database, query, limit, oldest_first=oldest_first)

    def find(self, start: str) -> list[Record]:
        """Records whose id begins with `start`, else those whose session id or series key does.

        Oldest first.
        """
        for query in (
            queries.beginning_with(record=start),
            queries.beginning_with(session=start),
            queries.beginning_with(series=start),
        ):
            matches = list(queries.records(self._database, query, None, oldest_first=True))
            if matches:
                return matches
        return []

    def find_commit(self, start: str) -> list[Record]:
        """Records of a project whose commit began with `start` and had no uncommitted changes.

        Oldest first. Reads all.
        """
        every = self.records(oldest_first=True)
        return [record for record in every if _is_of_commit(record.environment.facts, start)]

    def tests(self) -> list[str]:
        """The node ids of all tests that have a record, sorted. Quick also in a large store."""
        return queries.tests(self._database)

    def series(self, *, test: str | None = None) -> list[Series]:
        """Every series with its count and its newest record, most recent first."""
        return queries.all_series(self._database, test=test)

    def points(
        self, series: str, metric: str, *, environment: str | None = None, limit: int | None = None
    ) -> list[Point]:
        """One metric over a series, newest first, without reading whole records.

        `environment` is an environment key.
        """
        return queries.points(self._database, series, metric, limit, environment=environment)

    def facts(self, record_ids: Sequence[str]) -> dict[str, queries.Facts]:
        """The facts of the environments of these records, without reading whole records."""
        return queries.facts(self._database, record_ids)

    def measured(self, names: Sequence[str]) -> list[MeasuredMetric]:
        """What advice is made of, over all series, newest first (see `history.advice`)."""
        return queries.measured(self._database, names)

    def metric_names(self) -> list[str]:
        """Names of the metrics that the newest records have, sorted."""
        return queries.metric_names(self._database)

    def close(self) -> None:
        """Send what the spool holds if the store failed before, then close.

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
        if self._unavailable and time.monotonic() >= self._retry_at_s:
            self._try_again()
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
        if not self._unavailable:
            return
        try:
            self._resume()
        except StoreError as error:
            self._flush_failed(error)

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


def _is_of_commit(facts: Mapping[str, Any], commit: str) -> bool:
    return str(facts.get("git_commit") or "").startswith(commit) and not facts.get("git_dirty")


def _make(url: str, folder: Path | None, busy_s: float) -> Store:
    address = parse(url, folder or Path.cwd())
    return Store(Database(address, busy_s=busy_s), Spool(address.spool))
