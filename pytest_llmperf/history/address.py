"""Where a store is: its URL checked and taken apart, before anything is opened."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from pytest_llmperf.errors import StoreError, did_you_mean
from pytest_llmperf.secrets import masked

DEFAULT_URL = "sqlite:///.llmperf/history.db"
CHOICES = (
    "Stores: sqlite:///folder/history.db (relative), sqlite:////abs/history.db, "
    "postgresql+psycopg://user@host/database."
)

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

    `public_url` hides passwords; `file` is None for a server; `spool` is always a local file.
    """

    url: URL
    public_url: str
    file: Path | None
    spool: Path


def parse(url: str, folder: Path) -> Address:
    """Check a store URL. Relative SQLite files and the spool of a server are taken from `folder`.

    Raises:
        StoreError: it is not a URL, of no known dialect, or names no file or database.

    """
    checked = _checked(url)
    if checked.drivername == "sqlite":
        return _file_address(checked, folder)
    return _server_address(checked, folder)


def _checked(url: str) -> URL:
    """Return the URL with the driver that is used for its dialect. Raises StoreError as `parse`."""
    prefix = f"store URL {masked(url)!r}"
    if not _is_text(url):
        raise StoreError(f"{prefix} has a character that no URL can have. {CHOICES}")
    parsed = _parsed(url, prefix)
    dialect = parsed.drivername
    if dialect not in _DRIVERS:
        hint = did_you_mean(dialect, _DRIVERS)
        raise StoreError(f"{prefix}: dialect {dialect!r} is not supported.{hint} {CHOICES}")
    if not parsed.database:
        missing = "file" if "sqlite" in dialect else "database"
        raise StoreError(f"{prefix} names no {missing}. {CHOICES}")
    return parsed.set(drivername=_DRIVERS[dialect])


def _parsed(url: str, prefix: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError) as error:
        raise StoreError(f"{prefix} is not a URL.{_path_hint(url)} {CHOICES}") from error


def _is_text(url: str) -> bool:
    """Whether a URL has no half of a character (a byte that was no UTF-8), and no NUL."""
    try:
        return b"\0" not in url.encode() and "%00" not in url
    except UnicodeEncodeError:
        return False


def _path_hint(url: str) -> str:
    return "" if "://" in url or not url.strip() else f" Did you mean 'sqlite:///{url}'?"


def _file_address(url: URL, folder: Path) -> Address:
    name = url.database or ""
    if name == ":memory:" or name.startswith("file:"):
        problem = f"store URL {masked(str(url))!r} names no plain file"
        raise StoreError(f"{problem}; a history must outlive the session. {CHOICES}")
    file = folder.absolute() / name
    return Address(
        url=url.set(database=str(file)),
        public_url=f"sqlite:///{file}",
        file=file,
        spool=file.with_name(f"{file.name}.spool.jsonl"),
    )


def _server_address(url: URL, folder: Path) -> Address:
    without_password = url.render_as_string(hide_password=True)
    return Address(
        url=url,
        public_url=masked(without_password),
        file=None,
        spool=folder.absolute() / ".llmperf" / _spool_name(without_password),
    )


def _spool_name(url: str) -> str:
    """Return the name of the file in which what a server has not got yet waits."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    return f"spool-{digest}.jsonl"
