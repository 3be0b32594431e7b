"""A history as JSON lines, for jobs that share no database and for git.

Each line is one record with sorted keys, and lines are only ever appended. Two branches that both
added lines are merged by taking the lines of both (`merge=union`): an import takes each record
once, wherever its line is. Accepted changes travel as lines {"accepted": …} of the same file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from pytest_llmperf.core import record_json
from pytest_llmperf.core.benchmark import TIME
from pytest_llmperf.core.metrics.quantities import TABLE, Metric
from pytest_llmperf.core.record import UNFINISHED, MetricValue, Record
from pytest_llmperf.errors import StoreError, UsageError
from pytest_llmperf.history import accept
from pytest_llmperf.history.accept import Acceptance, Rename
from pytest_llmperf.history.identity import series_key, utc
from pytest_llmperf.history.problems import StoreRefused
from pytest_llmperf.history.store import Store

_BATCH = 500
_NEWER = (
    "This file was written by a newer version; nothing of it was imported, "
    "since a history with gaps misleads."
)
_IMPORTABLE = "'llmperf export' and --llmperf-json write files that can be imported."


class Skipped(Struct, frozen=True, kw_only=True):
    """A line that was not imported."""

    path: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: skipped, {self.reason}"


class Imported(Struct, kw_only=True):
    """What became of the lines.

    Records were `new`, `known`, or `finished`: known without their outcome. The others are accepted
    changes, and lines that were skipped.
    """

    new: int = 0
    known: int = 0
    finished: int = 0
    accepted: int = 0
    skipped: list[Skipped] = []


class _AcceptedLine(Struct, frozen=True):
    accepted: msgspec.Raw


class _NumberedRecord(NamedTuple):
    """A record, and the line of the file that it is on."""

    number: int
    record: Record


_Line = Record | Acceptance | Rename
_Units = dict[tuple[str, str, str], str]
"""Unit and direction in words, by series, metric and formula."""


def export_lines(
    records: Iterable[Record], accepted: Sequence[Acceptance | Rename]
) -> Iterator[bytes]:
    """Yield each record, then each accepted change, as one line.

    Records come oldest first; those of one moment are put by id.
    """
    for _, same_moment in groupby(records, key=lambda record: utc(record.created)):
        for record in sorted(same_moment, key=lambda record: record.id):
            yield record_json.encode(record, sorted_keys=True) + b"\n"
    for change in accepted:
        yield msgspec.json.encode({"accepted": change}, order="sorted") + b"\n"


def append_new(path: Path, lines: Iterable[bytes]) -> int:
    """Add to a file the lines whose record or accepted change it does not have yet.

    Returns how many there were. The content of the file stays as it is, byte by byte. Raises
    StoreError if it cannot be written.
    """
    try:
        present = _identities(path)
        fresh = [line for line in lines if _identity(line) not in present]
        _append(path, fresh)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error}. Free some space or give another --out."
        ) from error
    return len(fresh)


def _identities(path: Path) -> set[object]:
    if not path.is_file():
        return set()
    return set(map(_identity, path.read_bytes().splitlines(keepends=True)))


def _append(path: Path, lines: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() and not _ends_whole(path):
            file.write(b"\n")
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def import_file(store: Store, folder: Path, path: Path) -> Imported:
    """Add the records of a file to a store, and its accepted changes to the project at `folder`.

    An import may be repeated. A record that is there already is left as it is, but for an outcome
    that it did not have yet. Lines that cannot be imported (half-written, in conflict, of another
    unit) are skipped and named; no other line is lost because of them.

    Raises:
        UsageError: no line can be imported.
        StoreError: the file cannot be read, a newer version wrote it, or the store cannot be
            written.
    """
    imported = Imported(skipped=_unimportable(path))
    skipped_numbers = {skipped.number for skipped in imported.skipped}
    reviewed = accept.reviewed(folder)
    known_changes: set[object] = {*reviewed.accepted, *reviewed.renames}
    records = _records(path, skipped_numbers, folder, known_changes, imported)
    while batch := list(islice(records, _BATCH)):
        _write(store, path, batch, imported)
    return imported


def _records(
    path: Path,
    skipped_numbers: set[int],
    folder: Path,
    known_changes: set[object],
    imported: Imported,
) -> Iterator[_NumberedRecord]:
    """Yield the records of a file. A new accepted change on the way goes to the project's file."""
    for number, text in _lines(path):
        if number in skipped_numbers:
            continue
        line = _parsed(text)
        if isinstance(line, Record):
            yield _NumberedRecord(number, line)
        elif line not in known_changes:
            known_changes.add(line)
            accept.append(folder, line)
            imported.accepted += 1


def _unimportable(path: Path) -> list[Skipped]:
    """Return the lines that cannot be imported, before anything is written."""
    skipped, n_sound = [], 0
    units: _Units = {}
    for number, line in _lines(path):
        try:
            _require_sound(_parsed(line), units)
            n_sound += 1
        except record_json.NewerSchema as error:
            raise StoreError(f"{path}:{number}: {error} {_NEWER}") from error
        except (ValueError, StoreError) as error:
            half = "" if line.endswith(b"\n") else "half-written: "
            skipped.append(Skipped(path=str(path), number=number, reason=f"{half}{error}"))
    if skipped and not n_sound:
        raise UsageError(f"{path} is not a history: {skipped[0]}. {_IMPORTABLE}")
    return skipped


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            yield from _numbered(file)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}.") from error


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Give the lines that are not blank, each with its number."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, line


def _parsed(line: bytes) -> _Line:
    try:
        inner = msgspec.json.decode(line, type=_AcceptedLine).accepted
    except (msgspec.ValidationError, RecursionError):
        return record_json.decode(line)
    return accept.parsed(bytes(inner))


def _require_sound(line: _Line, units: _Units) -> None:
    """Raise for a record whose time is none, or whose metrics are not in their unit.

    The unit and the direction of a metric are those of its definition, and the same in all runs of
    a series.
    """
    if not isinstance(line, Record):
        return
    utc(line.created)
    for metric in line.metrics:
        _require_defined_unit(metric)
        _require_one_unit(series_key(line), metric, units)


def _require_defined_unit(metric: MetricValue) -> None:
    definition = _definition(metric.name)
    if definition is None or metric.formula != definition.formula:
        return
    if (metric.unit, metric.direction) != (definition.unit, definition.direction):
        raise ValueError(
            f"{metric.name} is {_unit_text(metric)}; by its definition {definition.formula} "
            f"it is {_unit_text(definition)}"
        )


def _definition(name: str) -> Metric | None:
    """Return how a metric is defined; a percentile of a quantity is defined as the quantity is."""
    if name == TIME.name:
        return TIME
    return TABLE.get(name) or TABLE.get(name.rpartition(".")[0])


def _unit_text(metric: MetricValue | Metric) -> str:
    return f"in {metric.unit!r}, {metric.direction} is better"


def _require_one_unit(series: str, metric: MetricValue, units: _Units) -> None:
    unit = _unit_text(metric)
    first = units.setdefault((series, metric.name, metric.formula), unit)
    if first != unit:
        raise ValueError(
            f"{metric.name} is {unit}; other runs of the same series in this file are {first}"
        )


def _write(store: Store, path: Path, batch: Sequence[_NumberedRecord], imported: Imported) -> None:
    """Add the records of a batch that are new, and the outcomes of those that had none."""
    unique = _unique(batch)
    imported.known += len(batch) - len(unique)
    stored_outcomes = store.known([record.id for _, record in unique])
    fresh = [numbered for numbered in unique if numbered.record.id not in stored_outcomes]
    imported.new += _add(store, path, fresh, imported)
    present = [record for _, record in unique if record.id in stored_outcomes]
    for record in present:
        if stored_outcomes[record.id] == UNFINISHED != record.outcome:
            store.update_outcome(record.id, record.outcome, record.claims, record.agreement)
            imported.finished += 1
        else:
            imported.known += 1


def _unique(batch: Sequence[_NumberedRecord]) -> list[_NumberedRecord]:
    """Return each record once, by its first line, or by its first finished one."""
    by_id: dict[str, _NumberedRecord] = {}
    for numbered in batch:
        record = numbered.record
        first = by_id.get(record.id)
        if first is None or first.record.outcome == UNFINISHED != record.outcome:
            by_id[record.id] = numbered
    return list(by_id.values())


def _add(store: Store, path: Path, fresh: Sequence[_NumberedRecord], imported: Imported) -> int:
    """Add all records in one transaction. Returns how many were new.

    Where the database refuses a value, they are added one by one, so that only that record is left
    out.
    """
    try:
        return store.add_many([record for _, record in fresh])
    except StoreRefused as error:
        if len(fresh) == 1:
            number = fresh[0].number
            imported.skipped.append(Skipped(path=str(path), number=number, reason=str(error)))
            return 0
    return sum(_add(store, path, [numbered], imported) for numbered in fresh)


def _identity(line: bytes) -> object:
    """Return what makes two lines the same.

    For a record it is its id and whether it is finished, for an accepted change the change itself,
    for any other line its bytes.
    """
    try:
        parsed = _parsed(line)
    except ValueError:
        return line
    if isinstance(parsed, Record):
        return parsed.id, parsed.outcome == UNFINISHED
    return parsed


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
