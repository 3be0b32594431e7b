"""Stores that unit tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.postgresql_server import Server, binaries, running


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A private PostgreSQL server."""
    folder = binaries()
    if folder is None:
        pytest.skip(
            "PostgreSQL's server programs (initdb, pg_ctl) are not installed: "
            "the store was not tried on PostgreSQL"
        )
    with running(folder) as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """A store that does not exist yet: a file, and a database of the server."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("server").database())
    return "sqlite:///kept/history.db"
