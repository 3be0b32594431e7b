"""What the store asks its database. Each function is one or a few short transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Row, Select, Table, and_, func, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from pytest_llmperf.core import record_json
from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import StoreError
from pytest_llmperf.history.database import Database
from pytest_llmperf.history.identity import storable, utc
from pytest_llmperf.history.problems import StoreUnavailable
from pytest_llmperf.history.rows import document, metric_rows, record_row
from pytest_llmperf.history.sessions import MEASURED
from pytest_llmperf.history.spool import Entry, Outcome
from pytest_llmperf.history.tables import DOCUMENTS, METRICS, RECORDS

_PAGE = 100
_INSERT: dict[str, Callable[[Table], sqlite.Insert | postgresql.Insert]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


class Point(Struct, frozen=True, kw_only=True):
    """One metric of one record. `value` None: not measurable then. `created` is UTC ISO 8601."""

    record_id: str
    session_id: str
    created: str
    environment_key: str
    outcome: str
    unit: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    formula: str


class Series(Struct, frozen=True, kw_only=True):
    """A series, how many records it has, and its newest one."""

    key: str
    test: str
    label: str
    workload_text: str
    strategy: str
    engine: str
    model: str
    n: int
    last_id: str
    last_created: str
    last_outcome: str
    last_environment_key: str


def write(database: Database, entry: Entry) -> None:
    """Write a record, or the outcome of one, in one transaction."""
    with database.writing() as connection:
        if isinstance(entry, Record):
            _add(connection, entry)
        else:
            _update(connection, entry)


def write_spooled(database: Database, entry: Entry) -> None:
    """As `write`.

    What the store will never take (a time that is none, an outcome without a record) is a
    ValueError.
    """
    try:
        write(database, entry)
    except StoreError as error:
        if isinstance(error, StoreUnavailable):
            raise
        raise ValueError(str(error)) from error


def write_many(database: Database, records: Sequence[Record]) -> int:
    """Add records in one transaction. Returns how many were new."""
    with database.writing() as connection:
        return sum(_add(connection, record) for record in records)


def outcomes(database: Database, record_ids: Sequence[str]) -> dict[str, str]:
    """The outcome of each of these records that is there."""
    by_stored = {storable(each): each for each in record_ids}
    query = select(RECORDS.c.id, RECORDS.c.outcome).where(RECORDS.c.id.in_(list(by_stored)))
    with database.reading() as connection:
        return {by_stored[row.id]: row.outcome for row in connection.execute(query)}


def tests(database: Database) -> list[str]:
    """Every test, by one step through the index a test: the records of each are not read."""
    first = select(func.min(RECORDS.c.test).label("test")).cte("tests", recursive=True)
    later = select(func.min(RECORDS.c.test)).where(RECORDS.c.test > first.c.test).scalar_subquery()
    found = first.union_all(select(later).where(first.c.test.is_not(None)))
    with database.reading() as connection:
        return sorted(
            test for test in connection.execute(select(found.c.test)).scalars() if test is not None
        )


def matching(
    *, test: str | None, series: str | None, environment: str | None, since: str | None
) -> Select[Any]:
    """The query for records that pass every filter that is not None.

    Raises StoreError for a time that is none.
    """
    query = select(RECORDS.c.created, RECORDS.c.seq, DOCUMENTS.c.body).join(
        DOCUMENTS, DOCUMENTS.c.record_seq == RECORDS.c.seq
    )
    equal = {"test": test and storable(test), "series_key": series, "environment_key": environment}
    for name, wanted in equal.items():
        if wanted is not None:
            query = query.where(RECORDS.c[name] == wanted)
    if since is not None:
        query = query.where(RECORDS.c.created >= utc(since))
    return query


def named(
    *, record: str | None = None, session: str | None = None, series: str | None = None
) -> Select[Any]:
    """The query for records whose id, session id or series key begins with a text."""
    query = matching(test=None, series=None, environment=None, since=None)
    for name, start in (("id", record), ("session_id", session), ("series_key", series)):
        if start is not None:
            query = query.where(RECORDS.c[name].startswith(storable(start), autoescape=True))
    return query


def records(
    database: Database, query: Select[Any], limit: int | None, *, oldest_first: bool = False
) -> Iterator[Record]:
    """The records of `matching`, newest first unless `oldest_first`, a page a transaction."""
    return islice(_pages(database, query, limit, oldest_first), limit)


def all_series(database: Database, *, test: str | None) -> list[Series]:
    """One row a series, most recent first."""
    groups = select(
        RECORDS.c.series_key, func.count().label("n"), func.max(RECORDS.c.created).label("created")
    )
    if test is not None:
        groups = groups.where(RECORDS.c.test == storable(test))
    group = groups.group_by(RECORDS.c.series_key).subquery()
    newest = and_(RECORDS.c.series_key == group.c.series_key, RECORDS.c.created == group.c.created)
    query = (
        select(RECORDS, group.c.n)
        .join(group, newest)
        .order_by(RECORDS.c.created.desc(), RECORDS.c.seq.desc())
    )
    with database.reading() as connection:
        rows = connection.execute(query).all()
    # Of records made at the same moment, the last added.
    first = {row.series_key: row for row in reversed(rows)}
    return [_series(row) for row in reversed(first.values())]


def points(
    database: Database,
    series: str,
    metric: str,
    limit: int | None,
    *,
    environment: str | None = None,
) -> list[Point]:
    """A metric over a series (in one environment unless None), newest first."""
    columns = [RECORDS.c[name] for name in ("session_id", "created", "environment_key", "outcome")]
    values = [METRICS.c[name] for name in ("unit", "value", "low", "high", "n", "formula")]
    query = (
        select(RECORDS.c.id.label("record_id"), *columns, *values)
        .join(
            METRICS, and_(METRICS.c.record_seq == RECORDS.c.seq, METRICS.c.name == storable(metric))
        )
        .where(RECORDS.c.series_key == series)
        .order_by(RECORDS.c.created.desc(), RECORDS.c.seq.desc())
        .limit(limit)
    )
    if environment is not None:
        query = query.where(RECORDS.c.environment_key == environment)
    with database.reading() as connection:
        return [_point(*row) for row in connection.execute(query)]


def metric_names(database: Database) -> list[str]:
    """Names in the newest records: all of a large store would have to be read for more."""
    newest = (
        select(RECORDS.c.seq)
        .order_by(RECORDS.c.created.desc(), RECORDS.c.seq.desc())
        .limit(_PAGE)
        .subquery()
    )
    query = (
        select(METRICS.c.name)
        .distinct()
        .join(newest, METRICS.c.record_seq == newest.c.seq)
        .order_by(METRICS.c.name)
    )
    with database.reading() as connection:
        return list(connection.execute(query).scalars())


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
) -> Point:
    """The columns in the order of the query.

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
    )


def _add(connection: Connection, record: Record) -> bool:
    """Whether it was new."""
    put = (
        _INSERT[connection.dialect.name](RECORDS)
        .values(record_row(record))
        .on_conflict_do_nothing(index_elements=["id"])
    )
    if (
        connection.execute(put.inline(), execution_options={"preserve_rowcount": True}).rowcount
        == 0
    ):
        return False
    seq = _seq(connection, record.id)
    connection.execute(insert(DOCUMENTS), {"record_seq": seq, "body": document(record)})
    _add_metrics(connection, record, seq)
    return True


def _add_metrics(connection: Connection, record: Record, seq: int) -> None:
    if rows := metric_rows(record, seq):
        connection.execute(insert(METRICS), rows)


def _update(connection: Connection, change: Outcome) -> None:
    seq = _seq(connection, change.id)
    body = connection.execute(
        select(DOCUMENTS.c.body).where(DOCUMENTS.c.record_seq == seq).with_for_update()
    ).scalar_one()
    old = _decode(body)
    new = msgspec.structs.replace(
        old,
        outcome=change.outcome,
        claims=change.claims,
        agreement=old.agreement if change.agreement is None else change.agreement,
        extra=old.extra | change.extra,
    )
    connection.execute(
        update(RECORDS).where(RECORDS.c.seq == seq).values(outcome=storable(change.outcome))
    )
    connection.execute(
        update(DOCUMENTS).where(DOCUMENTS.c.record_seq == seq).values(body=document(new))
    )


def _seq(connection: Connection, record_id: str) -> int:
    seq = connection.execute(
        select(RECORDS.c.seq).where(RECORDS.c.id == storable(record_id))
    ).scalar()
    if seq is None:
        raise StoreError(f"record {record_id!r} is not in the store; add it before its outcome.")
    return int(seq)


def _pages(
    database: Database, query: Select[Any], limit: int | None, oldest_first: bool
) -> Iterator[Record]:
    size = _PAGE if limit is None else min(_PAGE, limit)
    place = (RECORDS.c.created, RECORDS.c.seq)
    ordered = query.order_by(*(column.asc() if oldest_first else column.desc() for column in place))
    rows = _page(database, ordered, size)
    while rows:
        yield from (_decode(row.body) for row in rows)
        last = (rows[-1].created, rows[-1].seq)
        after = tuple_(*place) > last if oldest_first else tuple_(*place) < last
        rows = _page(database, ordered.where(after), size)


def _page(database: Database, query: Select[Any], size: int) -> list[Row[Any]]:
    with database.reading() as connection:
        return list(connection.execute(query.limit(size)))


def _decode(body: str) -> Record:
    try:
        return record_json.decode(body)
    except ValueError as error:
        raise StoreError(f"a stored record cannot be read: {error}") from error


def _series(row: Row[Any]) -> Series:
    kept = ("test", "label", "workload_text", "strategy", "engine", "model", "n")
    last = {
        f"last_{name}": getattr(row, name)
        for name in ("id", "created", "outcome", "environment_key")
    }
    return Series(key=row.series_key, **{name: getattr(row, name) for name in kept}, **last)


class MeasuredMetric(Struct, frozen=True, kw_only=True):
    """One metric of one record, with what tells apart what may be compared."""

    series_key: str
    created: str
    workload_key: str
    workload_text: str
    strategy: str
    engine: str
    model: str
    environment_key: str
    name: str
    value: float | None
    low: float | None
    high: float | None


def measured(database: Database, names: Sequence[str]) -> list[MeasuredMetric]:
    """These metrics of every validly measured record, newest first."""
    kept = [
        RECORDS.c[name]
        for name in MeasuredMetric.__struct_fields__
        if name in RECORDS.c and name != "name"
    ]
    values = [METRICS.c[name] for name in ("name", "value", "low", "high")]
    query = (
        select(*kept, *values)
        .join(METRICS, and_(METRICS.c.record_seq == RECORDS.c.seq, METRICS.c.name.in_(names)))
        .where(RECORDS.c.outcome.in_(sorted(MEASURED)))
        .order_by(RECORDS.c.created.desc(), RECORDS.c.seq.desc())
    )
    with database.reading() as connection:
        return [MeasuredMetric(**row) for row in connection.execute(query).mappings()]
