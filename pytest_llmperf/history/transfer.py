"""A history as JSON lines, for jobs that share no database and for git: one record a line, keys sorted, only ever appended.

Two branches that both added lines are merged by taking the lines of both (`merge=union`): an import takes each record once,
wherever its line stands. Accepted changes travel as lines {"accepted": …} of the same file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

import msgspec
from msgspec import Struct

from pytest_llmperf.core import record_json
from pytest_llmperf.core.benchmark import TIME
from pytest_llmperf.core.metrics.quantities import TABLE
from pytest_llmperf.core.record import UNFINISHED, MetricValue, Record
from pytest_llmperf.errors import StoreError, UsageError
from pytest_llmperf.history import accept
from pytest_llmperf.history.accept import Acceptance, Rename
from pytest_llmperf.history.identity import series_key, utc
from pytest_llmperf.history.problems import StoreRefused
from pytest_llmperf.history.store import Store

_BATCH = 500
_NEWER = "This file was written by a newer version; nothing of it was imported, since a history with gaps misleads."


class Skipped(Struct, frozen=True, kw_only=True):
    """A line that was not imported."""

    path: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: skipped, {self.reason}"


class Imported(Struct, kw_only=True):
    """What became of the lines: records that were new, already there, or there without their outcome; accepted changes."""

    new: int = 0
    known: int = 0
    finished: int = 0
    accepted: int = 0
    skipped: list[Skipped] = []


class _Accepted(Struct, frozen=True):
    accepted: msgspec.Raw


_Line = Record | Acceptance | Rename
_Numbered = tuple[int, Record]


def export_lines(
    records: Iterable[Record], accepted: Sequence[Acceptance | Rename]
) -> Iterator[bytes]:
    """Each record, then each accepted change, as one line.

    Records come oldest first; those of one moment are put by id.
    """
    for _, same_moment in groupby(records, key=lambda record: utc(record.created)):
        for record in sorted(same_moment, key=lambda record: record.id):
            yield record_json.encode(record, sorted_keys=True) + b"\n"
    for each in accepted:
        yield msgspec.json.encode({"accepted": each}, order="sorted") + b"\n"


def append_new(path: Path, lines: Iterable[bytes]) -> int:
    """Add to a file the lines whose record or accepted change it does not have yet.

    Returns how many.

    What is in the file stays as it is, byte by byte. Raises StoreError if it cannot be written.
    """
    try:
        have = (
            set(map(_identity, path.read_bytes().splitlines(keepends=True)))
            if path.is_file()
            else set()
        )
        fresh = [line for line in lines if _identity(line) not in have]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell() and not _ends_whole(path):
                file.write(b"\n")
            file.writelines(fresh)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error}. Free some space or give another --out."
        ) from error
    return len(fresh)


def import_file(store: Store, folder: Path, path: Path) -> Imported:
    """Add the records of a file to a store, and its accepted changes to the project at `folder`.

    May be repeated.

    A record that is there already is left as it is, but for an outcome that it did not have yet.
    Lines that are none of ours (half-written, in conflict, of another unit) are skipped and named;
    nothing else is lost for them.

    Raises:
        UsageError: no line is one of ours.
        StoreError: the file cannot be read, a newer version wrote it, or the store cannot be
            written.
    """
    done = Imported(skipped=_examined(path))
    bad = {each.number for each in done.skipped}
    lines = (each for each in _lines(path) if each[0] not in bad)
    kept = accept.reviewed(folder)
    known: set[object] = {*kept.accepted, *kept.renames}
    records = (
        each
        for each in ((number, _parsed(line)) for number, line in lines)
        if not _is_accepted(each[1], known, folder, done)
    )
    while batch := list(islice(records, _BATCH)):
        _write(
            store,
            path,
            [(number, record) for number, record in batch if isinstance(record, Record)],
            done,
        )
    return done


def _examined(path: Path) -> list[Skipped]:
    """The lines that are none of ours, before anything is written."""
    skipped, good = [], 0
    units: dict[tuple[str, str, str], str] = {}
    for number, line in _lines(path):
        try:
            _require_sound(_parsed(line), units)
            good += 1
        except record_json.NewerSchema as error:
            raise StoreError(f"{path}:{number}: {error} {_NEWER}") from error
        except (ValueError, StoreError) as error:
            half = "" if line.endswith(b"\n") else "half-written: "
            skipped.append(Skipped(path=str(path), number=number, reason=f"{half}{error}"))
    if skipped and not good:
        raise UsageError(
            f"{path} is no history: {skipped[0]}. 'llmperf export' and --llmperf-json write files that can be imported.",
        )
    return skipped


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}.") from error


def _parsed(line: bytes) -> _Line:
    try:
        inner = msgspec.json.decode(line, type=_Accepted).accepted
    except msgspec.ValidationError:
        return record_json.decode(line)
    return accept.parsed(bytes(inner))


def _require_sound(line: _Line, units: dict[tuple[str, str, str], str]) -> None:
    """Raise for a record whose time is none, or whose metrics are not in the unit and direction of their definition."""
    if not isinstance(line, Record):
        return
    utc(line.created)
    for metric in line.metrics:
        row = (
            TIME
            if metric.name == TIME.name
            else TABLE.get(metric.name) or TABLE.get(metric.name.rpartition(".")[0])
        )
        if (
            row is not None
            and metric.formula == row.formula
            and (metric.unit, metric.direction) != (row.unit, row.direction)
        ):
            raise ValueError(
                f"{metric.name} is in {metric.unit!r}, {metric.direction} is better; by its definition {row.formula} it is in "
                f"{row.unit!r}, {row.direction} is better",
            )
        _require_one_unit(series_key(line), metric, units)


def _require_one_unit(
    series: str, metric: MetricValue, units: dict[tuple[str, str, str], str]
) -> None:
    said = f"in {metric.unit!r}, {metric.direction} is better"
    first = units.setdefault((series, metric.name, metric.formula), said)
    if first != said:
        raise ValueError(
            f"{metric.name} is {said}; other runs of the same series in this file are {first}"
        )


def _is_accepted(line: _Line, known: set[object], folder: Path, done: Imported) -> bool:
    """Whether it was an accepted change; a new one goes to the project's file."""
    if isinstance(line, Record):
        return False
    if line not in known:
        known.add(line)
        accept.append(folder, line)
        done.accepted += 1
    return True


def _write(store: Store, path: Path, batch: Sequence[_Numbered], done: Imported) -> None:
    wanted: dict[str, _Numbered] = {}
    for number, record in batch:
        first = wanted.get(record.id)
        if first is None or (first[1].outcome == UNFINISHED != record.outcome):
            wanted[record.id] = (number, record)
        done.known += first is not None
    there = store.known(list(wanted))
    fresh = [each for each in wanted.values() if each[1].id not in there]
    done.new += _added(store, path, fresh, done)
    for _, record in wanted.values():
        if there.get(record.id) == UNFINISHED != record.outcome:
            store.update_outcome(record.id, record.outcome, record.claims, record.agreement)
            done.finished += 1
        else:
            done.known += record.id in there


def _added(store: Store, path: Path, fresh: Sequence[_Numbered], done: Imported) -> int:
    """All in one transaction.

    Where the database refuses a value, one by one, so that only that record is left out.
    """
    try:
        return store.add_many([record for _, record in fresh])
    except StoreRefused as error:
        if len(fresh) == 1:
            done.skipped.append(Skipped(path=str(path), number=fresh[0][0], reason=str(error)))
            return 0
    return sum(_added(store, path, [each], done) for each in fresh)


def _identity(line: bytes) -> object:
    """What makes two lines one: a record's id and whether it is finished, an accepted change itself, else the bytes."""
    try:
        found = _parsed(line)
    except ValueError:
        return line
    return (found.id, found.outcome == UNFINISHED) if isinstance(found, Record) else found


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
