"""One open database: its connections and transactions, its schema, and what to do if damaged."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, create_engine, event, select, text

from pytest_llmperf.errors import StoreError
from pytest_llmperf.history import migrate
from pytest_llmperf.history.address import Address
from pytest_llmperf.history.problems import (
    StoreCorrupt,
    StoreMissing,
    StoreMoved,
    StoreUnavailable,
    explained,
)
from pytest_llmperf.history.tables import DOCUMENTS, HEAD

_WRITE = "llmperf_write"
_MIGRATION_LOCK = 0x6C6C6D70  # any number that nobody else locks


class Database:
    """Transactions on one store. Every driver error leaves as a StoreError."""

    def __init__(self, address: Address, *, busy_s: float) -> None:
        self.address = address
        self.busy_s = busy_s
        self._inode: int | None = None
        self._engine = _engine(address, busy_s)
        self._writer = self._engine.execution_options(**{_WRITE: True})

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A read transaction."""
        with explained(self.address.public_url), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A write transaction, durable when the block ends.

        Waits at most `busy_s` for other writers. Raises StoreMoved where the file that is open is
        not the one at its place any more.
        """
        with explained(self.address.public_url), self._writer.begin() as connection:
            self.require_in_place()
            yield connection

    def require_in_place(self) -> None:
        """Raise StoreMoved where the file that is open is not the one at its place any more."""
        if self._inode is not None and _inode(self.address.file) != self._inode:
            raise StoreMoved(
                f"store {self.address.public_url} was deleted, moved or replaced while this "
                "session ran."
            )

    def prepare(self, *, create: bool) -> list[str]:
        """Bring the schema up to date, creating it if `create`.

        Returns what the user should be told.

        Raises:
            StoreMissing: nothing there and `create` is False.
            StoreError: it cannot be opened, or a newer version wrote it.
        """
        if self.address.file is None:
            return self._prepare_server(create)
        self._inode = None
        notices = self._prepare_file(self.address.file, create)
        self._inode = _inode(self.address.file)
        return notices

    def put_aside(self, damage: StoreCorrupt) -> list[str]:
        """Keep the damaged file as it is under a new name and start an empty store.

        Returns what the user should be told.
        """
        file = self.address.file
        if file is None:
            raise damage
        with self._lock(file):
            # Another process has done it since we looked.
            is_done = _inode(file) not in {None, self._inode}
            self.dispose()
            notices = self._prepare_locked(file) if is_done else [self._put_aside(file, damage)]
            self._inode = _inode(file)
            return notices

    def keep_deleted(self) -> Path | None:
        """Copy the whole open file beside its place, where no name leads to it any more.

        Returns the copy; None where the file was moved, and lies elsewhere, or cannot be copied.
        """
        file = self.address.file
        if file is None or self._inode is None or not is_deleted(self._inode):
            return None
        try:
            _make_folder(file.parent)
            copy = _free_name(file, "deleted")
            with explained(self.address.public_url), self._engine.connect() as connection:
                _copy(connection, copy)
        except (StoreError, OSError):
            return None
        return copy

    def dispose(self) -> None:
        """Close all connections."""
        self._inode = None
        self._engine.dispose()

    def _prepare_server(self, create: bool) -> list[str]:
        with self.writing() as connection:
            if _ready(connection, self.address.public_url, create=create):
                return []
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            migrate.upgrade(connection, self.address.public_url)
        return []

    def _prepare_file(self, file: Path, create: bool) -> list[str]:
        if not create and not file.is_file():
            raise StoreMissing(
                f"no store at {file} yet. "
                "A pytest run with llmperf tests makes it; --store names another."
            )
        _make_folder(file.parent)
        try:
            with self.reading() as connection:
                if _ready(connection, self.address.public_url, create=create):
                    return []
        except StoreCorrupt:
            pass  # looked at again under the lock: another process may be mending it
        with self._lock(file):
            return self._prepare_locked(file)

    def _prepare_locked(self, file: Path) -> list[str]:
        # A connection made before the lock may belong to a file that was put aside since.
        self.dispose()
        try:
            self._use_write_ahead_log()
            self._migrate_file()
        except StoreCorrupt as damage:
            return [self._put_aside(file, damage)]
        return []

    def _use_write_ahead_log(self) -> None:
        with (
            explained(self.address.public_url),
            closing(self._engine.raw_connection()) as connection,
        ):
            connection.cursor().execute("PRAGMA journal_mode=WAL")

    def _migrate_file(self) -> None:
        with self.writing() as connection:
            if not _ready(connection, self.address.public_url, create=True):
                migrate.upgrade(connection, self.address.public_url)

    def _put_aside(self, file: Path, damage: StoreCorrupt) -> str:
        self.dispose()
        copy = _free_name(file, "corrupt")
        # The log first: SQLite must never find it beside a new file.
        for suffix in ("-wal", "-shm", ""):
            part = file.with_name(file.name + suffix)
            if part.exists():
                part.rename(copy.with_name(copy.name + suffix))
        self._use_write_ahead_log()
        self._migrate_file()
        return f"{damage} It was kept as {copy}; a new, empty store was started at {file}."

    @contextmanager
    def _lock(self, file: Path) -> Iterator[None]:
        try:
            with FileLock(f"{file}.lock", timeout=self.busy_s):
                yield
        except Timeout as error:
            raise StoreUnavailable(
                f"{file}.lock was held by another process for {self.busy_s:g} s."
            ) from error
        except OSError as error:
            raise StoreUnavailable(_unwritable(file.parent, error)) from error


def is_deleted(inode: int) -> bool:
    """Whether this process has a file open that has no name any more."""
    for descriptor in _descriptors():
        try:
            status = descriptor.stat()
        except OSError:
            continue
        if status.st_ino == inode and not status.st_nlink:
            return True
    return False


def _descriptors() -> list[Path]:
    """Return the open files of this process, where the system shows them."""
    try:
        return list(Path("/proc/self/fd").iterdir())
    except OSError:
        return []


def _copy(connection: Connection, copy: Path) -> None:
    """Write all that a connection reads into a new file."""
    source: Any = connection.connection.driver_connection
    with closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def _inode(file: Path | None) -> int | None:
    """Return the number of a file; None where it is not there."""
    try:
        return None if file is None else file.stat().st_ino
    except OSError:
        return None


def _ready(connection: Connection, public_url: str, *, create: bool) -> bool:
    revision = migrate.revision(connection)
    if revision is None and not create:
        raise StoreMissing(
            f"store {public_url} holds no history yet. A pytest run with llmperf tests fills it."
        )
    migrate.require_known(revision, public_url)
    if revision != HEAD:
        return False
    _require_readable(connection)
    return True


def _require_readable(connection: Connection) -> None:
    """Read the newest document: a damaged file may have a schema all the same."""
    newest = select(DOCUMENTS.c.body).order_by(DOCUMENTS.c.record_seq.desc()).limit(1)
    connection.execute(newest).first()


def _engine(address: Address, busy_s: float) -> Engine:
    if address.file is not None:
        return _file_engine(address, busy_s)
    return _server_engine(address, busy_s)


def _file_engine(address: Address, busy_s: float) -> Engine:
    engine = create_engine(address.url, connect_args={"timeout": busy_s})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: Any, _record: object) -> None:
    # The driver would begin too late, and never for reads; `_begin` does it.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")


def _begin(connection: Connection) -> None:
    # A writer takes its lock at once: upgrading a read lock later fails without waiting when
    # another has written.
    write = connection.get_execution_options().get(_WRITE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _server_engine(address: Address, busy_s: float) -> Engine:
    waits = {
        "connect_timeout": max(2, round(busy_s)),
        "options": f"-c lock_timeout={round(busy_s * 1000)}",
    }
    arguments = {name: value for name, value in waits.items() if name not in address.url.query}
    try:
        return create_engine(address.url, pool_pre_ping=True, connect_args=arguments)
    except ImportError as error:
        raise StoreError(
            f"store {address.public_url} needs the package psycopg, "
            f"which is not installed here ({error}). "
            "Install it with: pip install 'pytest-llmperf[postgresql]'",
        ) from error


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.name == ".llmperf":
            _keep_out_of_commits(folder)
    except OSError as error:
        raise StoreUnavailable(_unwritable(folder, error)) from error


def _keep_out_of_commits(folder: Path) -> None:
    """Have git ignore our own folder, as pytest does with its cache."""
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")


def _unwritable(folder: Path, error: OSError) -> str:
    return (
        f"store folder {folder} cannot be written: {error}. "
        "Give a writable place with --llmperf-store sqlite:////path/history.db."
    )


def _free_name(file: Path, why: str) -> Path:
    names = _numbered_names(file, _stem_of_copy(file, why))
    return next(name for name in names if not name.exists())


def _stem_of_copy(file: Path, why: str) -> str:
    return f"{file.name}.{why}-{datetime.now(UTC):%Y%m%dT%H%M%S}"


def _numbered_names(file: Path, stem: str) -> Iterator[Path]:
    """Give the names that a file beside `file` may have: the stem, then the stem with a number."""
    yield file.with_name(stem)
    for number in range(1, 10_000):
        yield file.with_name(f"{stem}-{number}")
