"""Checks the options that were given, when a session starts.

What has its default is not looked at, so a session without an option of ours imports nothing for
it. What --llmperf-gate, --llmperf-against and --llmperf-waivers name is checked where it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_llmperf.errors import StoreError, UsageError
from pytest_llmperf.settings.settings import READERS, SECONDS, positive, read_cluster

NO_STORE = "none"


def check_given(given: Mapping[str, Any], root: Path) -> None:
    """Raise UsageError for the first of the given options that cannot be used."""
    for name, value in given.items():
        if name in SECONDS:
            positive(name, value)
        elif name in READERS:
            READERS[name](value)
    read_cluster(given.get("cluster", ""), given.get("against", ""))
    _check_store(given.get("store", NO_STORE), root)


def _check_store(url: str, root: Path) -> None:
    if url == NO_STORE:
        return
    # A session that measures nothing does without SQLAlchemy.
    from pytest_llmperf.history.address import parse  # noqa: PLC0415

    try:
        parse(url, root)
    except StoreError as error:
        raise UsageError(f"--llmperf-store: {error}") from error
