"""Accepted changes: a file of JSON lines in the tested project.

It is reviewed and committed as the project's code is. No number is edited.
"""

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


class Acceptance(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """From `created` (that of the accepted record) on, a series has a new level.

    Without `level`, the session of the record is one of the accepted ones, and the level stays.
    `test` is there for people to read.
    """

    series: str
    record: str
    created: str
    test: str
    who: str
    why: str
    when: str
    level: bool = True


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
        """Return the record's series key, then those of its test's earlier names, latest first."""
        return [
            series_key(msgspec.structs.replace(record, test=name))
            for name in self.names(record.test)
        ]

    def names(self, test: str) -> list[str]:
        """Return the test's node id, then its earlier ones, latest first."""
        names = [test]
        for rename in reversed(self.renames):
            earlier = _renamed(names[-1], rename.new, rename.old) if rename.new else None
            if earlier is not None and earlier not in names:
                names.append(earlier)
        return names

    def removed_at(self, test: str) -> str:
        """Return when the test was last said to be removed (UTC); empty if it never was."""
        removals = [utc(rename.when) for rename in self.renames if _removes(rename, test)]
        return max(removals, default="")

    def name_now(self, test: str) -> str:
        """Return the present node id of a test that had this one: "" where it was removed."""
        name = test
        for rename in self.renames:
            name = _name_after(rename, name)
        return name


def read(folder: Path) -> tuple[Acceptance, ...]:
    """Return every accepted change of level of a project. Raises UsageError as `reviewed` does."""
    return reviewed(folder).accepted


def reviewed(folder: Path) -> Reviewed:
    """Return everything that was accepted in a project, in the order of the file.

    Raises UsageError for a line that is not an accepted change.
    """
    path = folder / FILE
    if not path.is_file():
        return Reviewed()
    rows = enumerate(_text(path).split("\n"), start=1)
    lines = [_line(path, number, row) for number, row in rows if row.strip()]
    return Reviewed(
        accepted=tuple(line for line in lines if isinstance(line, Acceptance)),
        renames=tuple(line for line in lines if isinstance(line, Rename)),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{path} cannot be read: {error}."
        raise UsageError(f"{problem} 'llmperf accept' writes such a file.") from error


def append(folder: Path, line: Acceptance | Rename) -> Path:
    """Add one line. Raises UsageError for a change without a reason or a name."""
    for field, option in (("who", "--who"), ("why", "--reason")):
        if not getattr(line, field).strip():
            raise UsageError(f"an accepted change needs {field!r}: say it with {option}.")
    path = folder / FILE
    start = b"\n" if _is_cut_off(path) else b""
    with path.open("ab") as file:
        file.write(start + msgspec.json.encode(line) + b"\n")
    return path


def levels(accepted: Sequence[Acceptance], *series: str) -> list[str]:
    """Return when (UTC) each accepted level of a series, under any of these keys, began."""
    return sorted(
        utc(change.created) for change in accepted if change.level and change.series in series
    )


def parsed(row: bytes | str) -> Acceptance | Rename:
    """Return the accepted change of one line. Raises ValueError for anything else."""
    try:
        fields = msgspec.json.decode(row)
    except RecursionError as error:
        raise ValueError(f"it is nested too deeply ({error})") from error
    is_rename = isinstance(fields, dict) and "old" in fields
    kind: type[Acceptance | Rename] = Rename if is_rename else Acceptance
    line = msgspec.convert(fields, type=kind)
    try:
        utc(line.created if isinstance(line, Acceptance) else line.when)
    except StoreError as error:
        raise ValueError(str(error)) from error
    return line


def _line(path: Path, number: int, row: str) -> Acceptance | Rename:
    try:
        return parsed(row)
    except ValueError as error:
        problem = f"{path}, line {number} is not an accepted change: {error}."
        raise UsageError(f"{problem} 'llmperf accept' writes such lines.") from error


def _is_cut_off(path: Path) -> bool:
    """Whether the file's last line has no end."""
    content = path.read_bytes() if path.is_file() else b""
    return bool(content) and not content.endswith(b"\n")


def _removes(rename: Rename, test: str) -> bool:
    """Whether a change of names says that this test was removed."""
    return not rename.new and _renamed(test, rename.old, "") is not None


def _name_after(rename: Rename, test: str) -> str:
    """Return the name that a test has after a change of names: "" where it was removed."""
    later = _renamed(test, rename.old, rename.new)
    if later is None:
        return test
    return later if rename.new else ""


def _renamed(test: str, old: str, new: str) -> str | None:
    """Return `test` with `old` at its start replaced; None where it is another test."""
    if not old or not test.startswith(old):
        return None
    rest = test.removeprefix(old)
    return new + rest if rest[:1] in _BOUNDARY else None
