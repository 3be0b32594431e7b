"""Accepted changes: a file of JSON lines in the tested project, reviewed and committed as its code is. No number is edited."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from pytest_llmperf.errors import UsageError
from pytest_llmperf.history.identity import utc

FILE = "llmperf-accepted.jsonl"


class Acceptance(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From `created` (that of the accepted record) on, a series has a new level. `test` is there for people to read."""

    series: str
    record: str
    created: str
    test: str
    who: str
    why: str
    when: str


def read(folder: Path) -> tuple[Acceptance, ...]:
    """Every accepted change of a project, in the order of the file. Raises UsageError for a line that is none."""
    path = folder / FILE
    if not path.is_file():
        return ()
    rows = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    return tuple(_line(path, n, row) for n, row in rows if row.strip())


def append(folder: Path, acceptance: Acceptance) -> Path:
    """Add one line. Raises UsageError for a change without a reason or a name."""
    for field in ("who", "why"):
        if not getattr(acceptance, field).strip():
            raise UsageError(f"an accepted change needs {field!r}: say it with --{'reason' if field == 'why' else 'who'}.")
    path = folder / FILE
    whole = path.read_bytes() if path.is_file() else b""
    with path.open("ab") as file:
        file.write(b"" if whole.endswith(b"\n") or not whole else b"\n")
        file.write(msgspec.json.encode(acceptance) + b"\n")
    return path


def levels(accepted: tuple[Acceptance, ...], series: str) -> list[str]:
    """The times (UTC) from which the levels of a series after its first hold, in order."""
    return sorted(utc(each.created) for each in accepted if each.series == series)


def _line(path: Path, n: int, row: str) -> Acceptance:
    try:
        found = msgspec.json.decode(row, type=Acceptance)
        utc(found.created)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}, line {n} is no accepted change: {error}. 'llmperf accept' writes such lines.") from error
    return found
