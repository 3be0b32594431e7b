"""Which runs belong to one series. The only place that says so."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import msgspec

from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import StoreError

SERIES_FIELDS = ("test", "label", "workload_key", "strategy", "model_hash", "engine")
"""The record's fields that identify its series.

The environment is not one: it decides what is comparable inside it.
"""


def series_key(record: Record) -> str:
    """Return the SHA-256 (16 hex digits) of the fields that identify the record's series."""
    content = msgspec.json.encode([storable(getattr(record, field)) for field in SERIES_FIELDS])
    return hashlib.sha256(content).hexdigest()[:16]


def utc(created: str) -> str:
    """Return an ISO 8601 time as UTC with microseconds, so that text order is time order.

    Without an offset it is read as UTC.

    Raises:
        StoreError: it is not an ISO 8601 time.
    """
    return _parsed_time(created).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _parsed_time(created: str) -> datetime:
    try:
        time = datetime.fromisoformat(created)
        aware = time if time.tzinfo else time.replace(tzinfo=UTC)
        return aware.astimezone(UTC)
    except (ValueError, OverflowError) as error:  # within a day of the years 1 and 9999
        raise StoreError(
            f"{created!r} is not an ISO 8601 time, for example '2026-11-23T05:07:00+00:00'."
        ) from error


def storable(text: str) -> str:
    """Return the text as both databases can hold it: no lone surrogates, no NUL (PostgreSQL)."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
