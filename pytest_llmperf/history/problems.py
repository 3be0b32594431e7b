"""What can go wrong with a store, and the sentences that say so."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from pytest_llmperf.errors import StoreError
from pytest_llmperf.secrets import masked


class StoreMissing(StoreError):
    """There is no history at this place yet."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, read or written now: locked, unreachable, disk full.

    What is measured goes to the spool.
    """


class StoreBusy(StoreUnavailable):
    """Others keep the store busy for longer than was waited. That is no outage."""


class StoreMoved(StoreUnavailable):
    """The SQLite file was deleted, moved or replaced while it was open."""


class StoreRefused(StoreError):
    """The database will never take this value."""


class StoreCorrupt(StoreUnavailable):
    """The SQLite file is damaged."""


_BUSY = (
    "is locked: another process kept it for longer than the busy timeout. "
    "End that process, or give another store."
)
_SQLITE = {
    sqlite3.SQLITE_READONLY: (
        "cannot be written: file or folder is read-only. "
        "Give a writable place with --llmperf-store."
    ),
    sqlite3.SQLITE_IOERR: (
        "cannot be read or written: "
        "the disk reports an error (full, or a limit on the size of files?)."
    ),
    sqlite3.SQLITE_FULL: (
        "cannot be written: the disk is full. "
        "Free some space, or give another place with --llmperf-store."
    ),
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: is its folder there, readable and writable?",
    sqlite3.SQLITE_PROTOCOL: (
        "cannot be locked: SQLite needs a local file system, network drives will not do."
    ),
}
_BUSY_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


_SERVER_BUSY = {
    "40001": "another transaction changed the same rows",
    "40P01": "another transaction waited for the same rows",
    "53300": "it has no connection left",
    "55P03": "another session kept a lock for longer than it was waited for",
    "57P03": "it is starting or stopping",
}
"""States of a PostgreSQL server that pass by themselves."""
_NOT_CONNECTED = re.compile("too many (?:connections|clients)|connection slots are reserved")
"""What it says where a refused connection has no state."""


@contextmanager
def explained(public_url: str) -> Iterator[None]:
    """Turn the drivers' errors into StoreErrors.

    `public_url` is the store's URL without its password.
    """
    try:
        yield
    except DBAPIError as error:
        raise _explain(error, public_url) from error
    except sqlite3.Error as error:
        raise _explain_sqlite(error, public_url) from error
    except SQLAlchemyError as error:
        raise StoreError(f"store {public_url}: {masked(str(error))}") from error


def _explain(error: DBAPIError, public_url: str) -> StoreError:
    reason = masked(" ".join(str(error.orig).split()))
    if isinstance(error, DataError | IntegrityError):
        return StoreRefused(f"store {public_url} refused a value: {reason}")
    if isinstance(error.orig, sqlite3.Error):
        return _explain_sqlite(error.orig, public_url)
    text = f"store {public_url} cannot be reached, read or written: {reason}"
    state = getattr(error.orig, "sqlstate", None)
    passing = _SERVER_BUSY.get("53300" if _NOT_CONNECTED.search(reason) else str(state))
    return StoreBusy(f"{text} ({passing})") if passing else StoreUnavailable(text)


def _explain_sqlite(error: sqlite3.Error, public_url: str) -> StoreError:
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF  # the higher bits tell details apart
    if primary in _DAMAGED:
        return StoreCorrupt(
            f"store {public_url} is damaged: {error}. "
            "`sqlite3 FILE .recover` may save what it holds."
        )
    if primary in _BUSY_CODES:
        return StoreBusy(f"store {public_url} {_BUSY} ({error})")
    sentence = _SQLITE.get(primary) if primary is not None else None
    if sentence is None:
        return StoreUnavailable(f"store {public_url}: {error}")
    return StoreUnavailable(f"store {public_url} {sentence} ({error})")
