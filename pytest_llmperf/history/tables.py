"""The tables of the store, the same on SQLite and PostgreSQL.

Migrations lead here; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

HEAD = "0001"
"""Newest migration. A store at this revision is opened without loading Alembic."""

METADATA = MetaData()

_SEQ = BigInteger().with_variant(Integer(), "sqlite")  # SQLite's row id must be declared INTEGER

RECORDS = Table(
    "llmperf_records",
    METADATA,
    Column("seq", _SEQ, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("session_id", String, nullable=False),
    Column("created", String, nullable=False),
    Column("test", String, nullable=False),
    Column("label", String, nullable=False),
    Column("workload_key", String, nullable=False),
    Column("workload_text", String, nullable=False),
    Column("strategy", String, nullable=False),
    Column("engine", String, nullable=False),
    Column("model", String, nullable=False),
    Column("model_hash", String, nullable=False),
    Column("environment_key", String, nullable=False),
    Column("series_key", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("schema_version", Integer, nullable=False),
    Index("llmperf_records_by_series", "series_key", "created", "seq"),
    Index(
        "llmperf_records_by_series_environment", "series_key", "environment_key", "created", "seq"
    ),
    Index("llmperf_records_by_test", "test", "created", "seq"),
    Index("llmperf_records_by_created", "created", "seq"),
)
"""One row a record, newest last.

`created` is UTC ISO 8601 with microseconds: text order is time order.
"""

METRICS = Table(
    "llmperf_metrics",
    METADATA,
    Column(
        "record_seq",
        _SEQ,
        ForeignKey("llmperf_records.seq", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("name", String, primary_key=True),
    Column("unit", String, nullable=False),
    Column("value", Double),
    Column("low", Double),
    Column("high", Double),
    Column("n", Integer, nullable=False),
    Column("formula", String, nullable=False),
    sqlite_with_rowid=False,
)
"""One row a metric of a record. A null value was not measurable; its reason is in the document."""

DOCUMENTS = Table(
    "llmperf_documents",
    METADATA,
    Column(
        "record_seq",
        _SEQ,
        ForeignKey("llmperf_records.seq", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("body", Text, nullable=False),
)
"""The whole record as JSON. Kept apart so that scans of `records` stay small."""
