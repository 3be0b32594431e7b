"""Records, their metrics and their documents."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TEXT_COLUMNS = (
    "session_id",
    "created",
    "test",
    "label",
    "workload_key",
    "workload_text",
    "strategy",
    "engine",
    "model",
    "model_hash",
    "environment_key",
    "series_key",
    "outcome",
)
_INDEXES = {
    "llmperf_records_by_series": ["series_key", "created", "seq"],
    "llmperf_records_by_series_environment": ["series_key", "environment_key", "created", "seq"],
    "llmperf_records_by_test": ["test", "created", "seq"],
    "llmperf_records_by_created": ["created", "seq"],
}


def upgrade() -> None:
    """Go to this revision."""
    _create_records()
    _create_metrics()
    op.create_table("llmperf_documents", _record_seq(), sa.Column("body", sa.Text, nullable=False))


def _create_records() -> None:
    op.create_table(
        "llmperf_records",
        sa.Column("seq", _SEQ, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        *(sa.Column(name, sa.String, nullable=False) for name in _TEXT_COLUMNS),
        sa.Column("schema_version", sa.Integer, nullable=False),
    )
    for name, columns in _INDEXES.items():
        op.create_index(name, "llmperf_records", columns)


def _create_metrics() -> None:
    op.create_table(
        "llmperf_metrics",
        _record_seq(),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("unit", sa.String, nullable=False),
        *(sa.Column(name, sa.Double) for name in ("value", "low", "high")),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("formula", sa.String, nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Go back to an empty database."""
    for table in ("llmperf_documents", "llmperf_metrics", "llmperf_records"):
        op.drop_table(table)


def _record_seq() -> sa.Column[int]:
    return sa.Column(
        "record_seq",
        _SEQ,
        sa.ForeignKey("llmperf_records.seq", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    )
