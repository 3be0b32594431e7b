"""Alembic's environment: it runs the migrations on the connection of `history.migrate`."""

from __future__ import annotations

from alembic import context

from pytest_llmperf.history.tables import METADATA

# The caller holds the transaction, so that all migrations of one opening are committed together or
# not at all.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table="llmperf_alembic_version",
)
context.run_migrations()
