"""Where a store is: its URL checked and taken apart, before anything is opened."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from pytest_llmperf.errors import StoreError, did_you_mean

DEFAULT_URL = "sqlite:///.llmperf/history.db"
CHOICES = "Stores: sqlite:///folder/history.db (relative), sqlite:////abs/history.db, postgresql+psycopg://user@host/database."

_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}


@dataclass(frozen=True, kw_only=True)
class Address:
    """A checked store URL.

    `shown` hides the password; `file` is None for a server; `spool` is always a local file.
    """

    url: URL
    shown: str
    file: Path | None
    spool: Path


def parse(url: str, folder: Path) -> Address:
    """Check a store URL. Relative SQLite files and the spool of a server are taken from `folder`.

    Raises:
        StoreError: it is not a URL, of no known dialect, or names no file or database.

    """
    made = _make(url)
    return (
        _file_address(made, folder)
        if made.drivername == "sqlite"
        else _server_address(made, folder)
    )


def _make(url: str) -> URL:
    shown = re.sub(r"://[^@/]*@", "://***@", url)
    try:
        made = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise StoreError(
            f"store URL {shown!r} is not a URL.{_maybe_path(url)} {CHOICES}"
        ) from error
    if made.drivername not in _DRIVERS:
        hint = did_you_mean(made.drivername, _DRIVERS)
        raise StoreError(
            f"store URL {shown!r}: dialect {made.drivername!r} is not supported.{hint} {CHOICES}"
        )
    if not made.database:
        raise StoreError(
            f"store URL {shown!r} names no {'file' if 'sqlite' in made.drivername else 'database'}. {CHOICES}"
        )
    return made.set(drivername=_DRIVERS[made.drivername])


def _maybe_path(url: str) -> str:
    return "" if "://" in url or not url.strip() else f" Did you mean 'sqlite:///{url}'?"


def _file_address(url: URL, folder: Path) -> Address:
    name = url.database or ""
    if name == ":memory:" or name.startswith("file:"):
        raise StoreError(
            f"store URL {str(url)!r} names no plain file; a history must outlive the session. {CHOICES}"
        )
    file = folder.absolute() / name
    return Address(
        url=url.set(database=str(file)),
        shown=f"sqlite:///{file}",
        file=file,
        spool=file.with_name(f"{file.name}.spool.jsonl"),
    )


def _server_address(url: URL, folder: Path) -> Address:
    shown = url.render_as_string(hide_password=True)
    name = hashlib.sha256(shown.encode()).hexdigest()[:8]
    return Address(
        url=url,
        shown=shown,
        file=None,
        spool=folder.absolute() / ".llmperf" / f"spool-{name}.jsonl",
    )
