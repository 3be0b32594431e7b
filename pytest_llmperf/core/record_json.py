"""A record as one line of JSON, the same in the store, its spool and JSON-lines files. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from pytest_llmperf.core.record import SCHEMA_VERSION, Record

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]

UPGRADES: dict[int, Upgrade] = {}
"""Version n -> the function that makes a record of version n one of version n + 1.

It works on plain JSON values. There is one for each older version.
"""


class NewerSchema(ValueError):
    """The record was written by a newer version of the program than this one."""


class _Version(msgspec.Struct):
    schema_version: int = 1
    id: str = "?"


def encode(value: object, *, sorted_keys: bool = False) -> bytes:
    """Return UTF-8 JSON of a record (or of a part of one) without a line break.

    With `sorted_keys`, equal values give equal bytes. JSON has no NaN or infinity: they are written
    as the strings "nan", "inf" and "-inf", and typed fields read them back as floats. Lone
    surrogates, which UTF-8 cannot hold, become "?".
    """
    return msgspec.json.encode(
        _plain(msgspec.to_builtins(value)), order="sorted" if sorted_keys else None
    )


def decode(line: bytes | str) -> Record:
    """Read a record that `encode` wrote, of this version or an older one.

    Raises:
        NewerSchema: its `schema_version` is above this program's.
        ValueError: it is not the JSON of a record (half a line, a missing field, a version that
            never was).
    """
    try:
        return _decoded(line)
    except RecursionError as error:
        raise ValueError(f"it is nested too deeply ({error})") from error


def _decoded(line: bytes | str) -> Record:
    version = msgspec.json.decode(line, type=_Version)
    if version.schema_version > SCHEMA_VERSION:
        raise NewerSchema(
            f"record {version.id!r} has schema version {version.schema_version}, "
            f"this pytest-llmperf reads up to {SCHEMA_VERSION}. "
            "Upgrade pytest-llmperf to read it.",
        )
    if version.schema_version < SCHEMA_VERSION:
        return _upgraded(msgspec.json.decode(line), version)
    return msgspec.json.decode(line, type=Record, strict=False)


def _upgraded(value: dict[str, Any], version: _Version) -> Record:
    if version.schema_version not in UPGRADES:
        raise ValueError(
            f"record {version.id!r} has schema version {version.schema_version}, "
            "and there never was one."
        )
    for older in range(version.schema_version, SCHEMA_VERSION):
        value = UPGRADES[older](value)
    return msgspec.convert({**value, "schema_version": SCHEMA_VERSION}, Record, strict=False)


def _plain(value: Any) -> Any:
    """Return what JSON and UTF-8 can hold of a value."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
