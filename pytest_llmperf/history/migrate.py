"""Bring a store's schema to a revision. Alembic is loaded only when there is something to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from pytest_llmperf.errors import StoreError
from pytest_llmperf.history.tables import HEAD

if TYPE_CHECKING:
    from alembic.config import Config

FOLDER = Path(__file__).parent / "migrations"
_VERSION_TABLE = "llmperf_alembic_version"


def revision(connection: Connection) -> str | None:
    """Return the revision of the store's schema; None for an empty database."""
    if not inspect(connection).has_table(_VERSION_TABLE):
        return None
    query = f"SELECT version_num FROM {_VERSION_TABLE}"  # noqa: S608 - a constant
    return connection.execute(text(query)).scalar()


def upgrade(connection: Connection, public_url: str) -> None:
    """Bring the schema to `HEAD` inside the caller's transaction.

    `public_url` is the store's URL for messages.

    Raises:
        StoreError: the store is of a newer version than this program.
    """
    from alembic import command  # noqa: PLC0415

    config = _config(connection)
    require_known(revision(connection), public_url)
    command.upgrade(config, HEAD)


def downgrade(connection: Connection, to: str) -> None:
    """Go back to an older revision, or to "base" (drops every table)."""
    from alembic import command  # noqa: PLC0415

    command.downgrade(_config(connection), to)


def require_known(stored: str | None, public_url: str) -> None:
    """Raise StoreError unless this program knows the stored revision."""
    if stored is None or stored in _known():
        return
    raise StoreError(
        f"store {public_url} has schema revision {stored!r}, "
        f"this pytest-llmperf knows up to {HEAD!r}: a newer version wrote it. "
        "Upgrade pytest-llmperf, or give another store with --llmperf-store.",
    )


def _known() -> set[str]:
    return {path.name.partition("_")[0] for path in (FOLDER / "versions").glob("[0-9]*_*.py")}


def _config(connection: Connection) -> Config:
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
