"""What the store asks its database. Each function is one or a few short transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    and_,
    func,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from pytest_llmperf.core import record_json
from pytest_llmperf.core.record import Environment, Fact, Record
from pytest_llmperf.errors import StoreError
from pytest_llmperf.history.database import Database
from pytest_llmperf.history.identity import storable, utc
from pytest_llmperf.history.problems import StoreUnavailable
from pytest_llmperf.history.results import MEASURED, MeasuredMetric, Point, Series
from pytest_llmperf.history.rows import document, metric_rows, record_row
from pytest_llmperf.history.spool import Entry, Outcome
from pytest_llmperf.history.tables import DOCUMENTS, METRICS, RECORDS

_PAGE = 100
_OLDEST_FIRST = (RECORDS.c.created.asc(), RECORDS.c.seq.asc())
_NEWEST_FIRST = (RECORDS.c.created.desc(), RECORDS.c.seq.desc())
_NUMBERS = ("value", "low", "high")
_InsertOrIgnore = sqlite.Insert | postgresql.Insert

Facts = dict[str, Fact]


class _Document(msgspec.Struct):
    environment: Environment


_INSERT: dict[str, Callable[[Table], _InsertOrIgnore]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


def write(database: Database, entry: Entry) -> None:
    """Write a record, or the outcome of one, in one transaction."""
    with database.writing() as connection:
        _write(connection, entry)


def write_spooled(database: Database, entries: Sequence[Entry]) -> None:
    """Write records and outcomes that waited in the spool, all in one transaction or none.

    Raises ValueError for what the store will never take: a time that is none, an outcome without a
    record.
    """
    try:
        with database.writing() as connection:
            for entry in entries:
                _write(connection, entry)
    except StoreError as error:
        if isinstance(error, StoreUnavailable):
            raise
        raise ValueError(str(error)) from error


def _write(connection: Connection, entry: Entry) -> None:
    if isinstance(entry, Record):
        _add(connection, entry)
    else:
        _update(connection, entry)


def write_many(database: Database, records: Sequence[Record]) -> int:
    """Add records in one transaction. Returns how many were new."""
    with database.writing() as connection:
        return sum(_add(connection, record) for record in records)


def outcomes(database: Database, record_ids: Sequence[str]) -> dict[str, str]:
    """Return the outcome of each of these records that is there."""
    by_stored = {storable(record_id): record_id for record_id in record_ids}
    query = select(RECORDS.c.id, RECORDS.c.outcome).where(RECORDS.c.id.in_(list(by_stored)))
    with database.reading() as connection:
        return {by_stored[row.id]: row.outcome for row in connection.execute(query)}


def of_ids(database: Database, record_ids: Sequence[str]) -> list[Record]:
    """Return those of these records that are there."""
    every = matching(test=None, series=None, environment=None, since=None)
    rows: list[Record] = []
    for start in range(0, len(record_ids), _PAGE):
        ids = [storable(record_id) for record_id in record_ids[start : start + _PAGE]]
        rows += records(database, every.where(RECORDS.c.id.in_(ids)), None)
    return rows


def tests(database: Database) -> list[str]:
    """Return every test, by one step through the index a test: no record is read."""
    smallest = func.min(RECORDS.c.test)
    first = select(smallest.label("test")).cte("tests", recursive=True)
    following = select(smallest).where(RECORDS.c.test > first.c.test).scalar_subquery()
    every = first.union_all(select(following).where(first.c.test.is_not(None)))
    with database.reading() as connection:
        names = connection.execute(select(every.c.test)).scalars()
        return sorted(test for test in names if test is not None)


def matching(
    *, test: str | None, series: str | None, environment: str | None, since: str | None
) -> Select[Any]:
    """Return the query for records that pass every filter that is not None.

    Raises StoreError for a time that is none.
    """
    query = select(RECORDS.c.created, RECORDS.c.seq, DOCUMENTS.c.body).join(
        DOCUMENTS, DOCUMENTS.c.record_seq == RECORDS.c.seq
    )
    equal = {"test": test and storable(test), "series_key": series, "environment_key": environment}
    for name, value in equal.items():
        if value is not None:
            query = query.where(RECORDS.c[name] == value)
    if since is not None:
        query = query.where(RECORDS.c.created >= utc(since))
    return query


def beginning_with(
    *, record: str | None = None, session: str | None = None, series: str | None = None
) -> Select[Any]:
    """Return the query for records whose id, session id or series key begins with a text."""
    query = matching(test=None, series=None, environment=None, since=None)
    for name, start in (("id", record), ("session_id", session), ("series_key", series)):
        if start is not None:
            query = query.where(RECORDS.c[name].startswith(storable(start), autoescape=True))
    return query


def records(
    database: Database, query: Select[Any], limit: int | None, *, oldest_first: bool = False
) -> Iterator[Record]:
    """Return the records of `matching`, newest first unless `oldest_first`.

    Each page is read in a transaction of its own.
    """
    return islice(_pages(database, query, limit, oldest_first), limit)


def all_series(database: Database, *, test: str | None) -> list[Series]:
    """Return one row a series, most recent first."""
    with database.reading() as connection:
        rows = connection.execute(_newest_of_each_series(test)).all()
    # Of records made at the same moment, the one that was added last.
    last_added = {row.series_key: row for row in reversed(rows)}
    return [_series(row) for row in reversed(last_added.values())]


def _newest_of_each_series(test: str | None) -> Select[Any]:
    """Return the query for the newest records of each series, with its number of records."""
    newest = func.max(RECORDS.c.created).label("created")
    counts = select(RECORDS.c.series_key, func.count().label("n"), newest)
    if test is not None:
        counts = counts.where(RECORDS.c.test == storable(test))
    group = counts.group_by(RECORDS.c.series_key).subquery()
    in_group = RECORDS.c.series_key == group.c.series_key
    is_newest = and_(in_group, RECORDS.c.created == group.c.created)
    return select(RECORDS, group.c.n).join(group, is_newest).order_by(*_NEWEST_FIRST)


def points(
    database: Database,
    series: str,
    metric: str,
    limit: int | None,
    *,
    environment: str | None = None,
) -> list[Point]:
    """Return a metric over a series (in one environment unless None), newest first."""
    query = (
        select(*_point_columns())
        .join(METRICS, _has_metric(METRICS.c.name == storable(metric)))
        .where(RECORDS.c.series_key == series)
        .order_by(*_NEWEST_FIRST)
        .limit(limit)
    )
    if environment is not None:
        query = query.where(RECORDS.c.environment_key == environment)
    with database.reading() as connection:
        return [_point(*row) for row in connection.execute(query)]


def facts(database: Database, record_ids: Sequence[str]) -> dict[str, Facts]:
    """Return the facts of the environment of each of these records that is there."""
    by_stored = {storable(record_id): record_id for record_id in record_ids}
    query = (
        select(RECORDS.c.id, DOCUMENTS.c.body)
        .join(DOCUMENTS, DOCUMENTS.c.record_seq == RECORDS.c.seq)
        .where(RECORDS.c.id.in_(list(by_stored)))
    )
    with database.reading() as connection:
        return {by_stored[row.id]: _facts(row.body) for row in connection.execute(query)}


def _facts(body: str) -> Facts:
    """Return the facts alone: the rest of a record, its samples above all, is passed over."""
    try:
        return msgspec.json.decode(body, type=_Document).environment.facts
    except ValueError as error:
        raise StoreError(f"a stored record cannot be read: {error}") from error


def _point_columns() -> list[ColumnElement[Any]]:
    """Return the columns in the order of `_point`."""
    return [
        RECORDS.c.id.label("record_id"),
        *_columns(RECORDS, ("session_id", "created", "environment_key", "outcome")),
        *_columns(METRICS, ("unit", *_NUMBERS, "n", "formula")),
        RECORDS.c.model,
    ]


def _columns(table: Table, names: Sequence[str]) -> list[ColumnElement[Any]]:
    return [table.c[name] for name in names]


def _has_metric(is_wanted: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return the condition that joins a record with its metrics."""
    return and_(METRICS.c.record_seq == RECORDS.c.seq, is_wanted)


def metric_names(database: Database) -> list[str]:
    """Return names in the newest records: more would mean to read all of a large store."""
    newest = select(RECORDS.c.seq).order_by(*_NEWEST_FIRST).limit(_PAGE).subquery()
    query = (
        select(METRICS.c.name)
        .distinct()
        .join(newest, METRICS.c.record_seq == newest.c.seq)
        .order_by(METRICS.c.name)
    )
    with database.reading() as connection:
        return list(connection.execute(query).scalars())


def measured(database: Database, names: Sequence[str]) -> list[MeasuredMetric]:
    """Return these metrics of every validly measured record, newest first."""
    query = (
        select(*_measured_columns())
        .join(METRICS, _has_metric(METRICS.c.name.in_(names)))
        .where(RECORDS.c.outcome.in_(sorted(MEASURED)))
        .order_by(*_NEWEST_FIRST)
    )
    with database.reading() as connection:
        return [MeasuredMetric(**row) for row in connection.execute(query).mappings()]


def _measured_columns() -> list[ColumnElement[Any]]:
    facts = [name for name in MeasuredMetric.__struct_fields__ if name in RECORDS.c]
    return _columns(RECORDS, facts) + _columns(METRICS, ("name", *_NUMBERS, "formula"))


def _point(
    record_id: str,
    session_id: str,
    created: str,
    environment_key: str,
    outcome: str,
    unit: str,
    value: float | None,
    low: float | None,
    high: float | None,
    n: int,
    formula: str,
    model: str,
) -> Point:
    """Return a point of the columns in the order of `_point_columns`.

    Mappings of long histories would take three times as long to read.
    """
    return Point(
        record_id=record_id,
        session_id=session_id,
        created=created,
        environment_key=environment_key,
        outcome=outcome,
        unit=unit,
        value=value,
        low=low,
        high=high,
        n=n,
        formula=formula,
        model=model,
    )


def _add(connection: Connection, record: Record) -> bool:
    """Add a record unless it is there. Returns whether it was new."""
    if not _add_row(connection, record):
        return False
    seq = _seq(connection, record.id)
    connection.execute(insert(DOCUMENTS), {"record_seq": seq, "body": document(record)})
    _add_metrics(connection, record, seq)
    return True


def _add_row(connection: Connection, record: Record) -> bool:
    statement = _insert_unless_known(connection.dialect.name, record)
    options = {"preserve_rowcount": True}
    return connection.execute(statement, execution_options=options).rowcount != 0


def _insert_unless_known(dialect: str, record: Record) -> _InsertOrIgnore:
    """Return the statement that adds a record's row where there is none of its id."""
    statement = _INSERT[dialect](RECORDS).values(record_row(record))
    return statement.on_conflict_do_nothing(index_elements=["id"]).inline()


def _add_metrics(connection: Connection, record: Record, seq: int) -> None:
    if rows := metric_rows(record, seq):
        connection.execute(insert(METRICS), rows)


def _update(connection: Connection, change: Outcome) -> None:
    seq = _seq(connection, change.id)
    is_its_document = DOCUMENTS.c.record_seq == seq
    query = select(DOCUMENTS.c.body).where(is_its_document).with_for_update()
    record = _with_outcome(_decode(connection.execute(query).scalar_one()), change)
    outcome = storable(change.outcome)
    connection.execute(update(RECORDS).where(RECORDS.c.seq == seq).values(outcome=outcome))
    body = document(record)
    connection.execute(update(DOCUMENTS).where(is_its_document).values(body=body))


def _with_outcome(record: Record, change: Outcome) -> Record:
    return msgspec.structs.replace(
        record,
        outcome=change.outcome,
        claims=change.claims,
        agreement=_latest_agreement(record, change),
        extra=record.extra | change.extra,
    )


def _latest_agreement(record: Record, change: Outcome) -> dict[str, Any] | None:
    return record.agreement if change.agreement is None else change.agreement


def _select_seq(record_id: str) -> Select[Any]:
    """Return the query for the row number of a record."""
    return select(RECORDS.c.seq).where(RECORDS.c.id == storable(record_id))


def _seq(connection: Connection, record_id: str) -> int:
    seq = connection.execute(_select_seq(record_id)).scalar()
    if seq is None:
        raise StoreError(f"record {record_id!r} is not in the store; add it before its outcome.")
    return int(seq)


def _pages(
    database: Database, query: Select[Any], limit: int | None, oldest_first: bool
) -> Iterator[Record]:
    size = _PAGE if limit is None else min(_PAGE, limit)
    position = tuple_(RECORDS.c.created, RECORDS.c.seq)
    ordered = query.order_by(*(_OLDEST_FIRST if oldest_first else _NEWEST_FIRST))
    rows = _page(database, ordered, size)
    while rows:
        yield from (_decode(row.body) for row in rows)
        last = (rows[-1].created, rows[-1].seq)
        is_next = position > last if oldest_first else position < last
        rows = _page(database, ordered.where(is_next), size)


def _page(database: Database, query: Select[Any], size: int) -> list[Row[Any]]:
    with database.reading() as connection:
        return list(connection.execute(query.limit(size)))


def _decode(body: str) -> Record:
    try:
        return record_json.decode(body)
    except ValueError as error:
        raise StoreError(f"a stored record cannot be read: {error}") from error


def _series(row: Row[Any]) -> Series:
    names = ("test", "label", "workload_text", "strategy", "engine", "model", "n")
    names_of_last = ("id", "created", "outcome", "environment_key")
    common = {name: getattr(row, name) for name in names}
    last = {f"last_{name}": getattr(row, name) for name in names_of_last}
    return Series(key=row.series_key, **common, **last)
