"""Accepted changes: a file of JSON lines in the tested project, reviewed and committed as its code is. No number is edited."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import StoreError, UsageError
from pytest_llmperf.history.identity import series_key, utc

FILE = "llmperf-accepted.jsonl"
_BOUNDARY = ("", ":", "[", "/")


class Acceptance(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From `created` (that of the accepted record) on, a series has a new level.

    `test` is there for people to read.
    """

    series: str
    record: str
    created: str
    test: str
    who: str
    why: str
    when: str


class Rename(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A test, or all tests of a class, file or folder, has another node id.

    `new` empty: it was removed on purpose.
    """

    old: str
    new: str
    who: str
    why: str
    when: str


class Reviewed(Struct, frozen=True, kw_only=True):
    """What the file says, in its order."""

    accepted: tuple[Acceptance, ...] = ()
    renames: tuple[Rename, ...] = ()

    def keys(self, record: Record) -> list[str]:
        """The series key of the record, then those that its series had under the test's earlier names, latest first."""
        return [
            series_key(msgspec.structs.replace(record, test=name))
            for name in self.names(record.test)
        ]

    def names(self, test: str) -> list[str]:
        """The test's node id, then its earlier ones, latest first."""
        found = [test]
        for rename in reversed(self.renames):
            earlier = _renamed(found[-1], rename.new, rename.old) if rename.new else None
            if earlier is not None and earlier not in found:
                found.append(earlier)
        return found

    def removed_at(self, test: str) -> str:
        """When the test was last said to be removed (UTC); empty if it never was."""
        return max(
            (
                utc(each.when)
                for each in self.renames
                if not each.new and _renamed(test, each.old, "") is not None
            ),
            default="",
        )

    def name_now(self, test: str) -> str:
        """What became of an earlier node id: the latest one, itself where it was not renamed, "" where it was removed."""
        name = test
        for rename in self.renames:
            later = _renamed(name, rename.old, rename.new)
            if later is not None:
                name = later if rename.new else ""
        return name


def read(folder: Path) -> tuple[Acceptance, ...]:
    """Every accepted change of level of a project. Raises UsageError as `reviewed`."""
    return reviewed(folder).accepted


def reviewed(folder: Path) -> Reviewed:
    """Everything that was accepted in a project, in the order of the file.

    Raises UsageError for a line that is none of it.
    """
    path = folder / FILE
    if not path.is_file():
        return Reviewed()
    rows = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    found = [_line(path, n, row) for n, row in rows if row.strip()]
    return Reviewed(
        accepted=tuple(each for each in found if isinstance(each, Acceptance)),
        renames=tuple(each for each in found if isinstance(each, Rename)),
    )


def append(folder: Path, line: Acceptance | Rename) -> Path:
    """Add one line. Raises UsageError for a change without a reason or a name."""
    for field in ("who", "why"):
        if not getattr(line, field).strip():
            raise UsageError(
                f"an accepted change needs {field!r}: say it with --{'reason' if field == 'why' else 'who'}."
            )
    path = folder / FILE
    whole = path.read_bytes() if path.is_file() else b""
    with path.open("ab") as file:
        file.write(b"" if whole.endswith(b"\n") or not whole else b"\n")
        file.write(msgspec.json.encode(line) + b"\n")
    return path


def levels(accepted: Sequence[Acceptance], *series: str) -> list[str]:
    """The times (UTC) from which the levels of a series (under all its keys) after its first hold, in order."""
    return sorted(utc(each.created) for each in accepted if each.series in series)


def parsed(row: bytes | str) -> Acceptance | Rename:
    """The accepted change of one line. Raises ValueError for anything else."""
    fields = msgspec.json.decode(row)
    kind: type[Acceptance | Rename] = (
        Rename if isinstance(fields, dict) and "old" in fields else Acceptance
    )
    found = msgspec.convert(fields, type=kind)
    try:
        utc(found.created if isinstance(found, Acceptance) else found.when)
    except StoreError as error:
        raise ValueError(str(error)) from error
    return found


def _line(path: Path, n: int, row: str) -> Acceptance | Rename:
    try:
        return parsed(row)
    except ValueError as error:
        raise UsageError(
            f"{path}, line {n} is no accepted change: {error}. 'llmperf accept' writes such lines."
        ) from error


def _renamed(test: str, old: str, new: str) -> str | None:
    """`test` with `old` at its start replaced; None where it is another test."""
    rest = test.removeprefix(old)
    return new + rest if old and test.startswith(old) and rest[:1] in _BOUNDARY else None
