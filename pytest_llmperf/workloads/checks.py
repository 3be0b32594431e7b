"""Checks of what a user gives, and reading of JSON-lines files. Pure but for the file."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmperf.errors import UsageError

LARGEST = 2**63 - 1
"""The largest whole number that travels between processes."""


def is_count(value: object, least: int = 1) -> bool:
    """Whether a value is a whole number of at least `least`, and no more than 64 bits hold."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return least <= value <= LARGEST


def is_number(value: object) -> bool:
    """Whether a value is a finite number of 64 bits, and no truth value."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def content_hash(content: object) -> str:
    """Return SHA-256 (16 hex digits) of what is asked of a model; never of a file's name."""
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:16]


def read_lines(path: Path, title: str) -> list[str]:
    """Return the lines of a file; `title` is what an error calls it.

    Lines end at line feeds alone: JSON texts may hold U+2028.

    Raises UsageError.
    """
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{title} {str(path)!r} cannot be read: {error}. Give a UTF-8 JSON-lines file."
        ) from error


def json_object(line: str, position: str, expected: str) -> dict[str, Any]:
    """Return the object that a line holds, an empty one where it holds another value.

    Raises UsageError, with the position and what is expected, for a line that is not JSON, or that
    has half of a character (a lone surrogate).
    """
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{position}: not a JSON object ({error}). {expected}") from error
    return row if isinstance(row, dict) else {}
