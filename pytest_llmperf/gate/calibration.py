"""Calibrated floors: how much sessions of a measurement differ without a change.

Each says where it is known from.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from datetime import date
from itertools import starmap
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from pytest_llmperf.core.environment import device_names
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts.reach import (
    MIN_SESSIONS,
)
from pytest_llmperf.errors import UsageError
from pytest_llmperf.gate.waivers import UNREADABLE, is_test

FILE = "llmperf-calibration.toml"
_HEAD = (
    "# Written by 'llmperf calibrate', to be reviewed and committed. "
    "Floors are shares: 0.03 is 3 %.\n"
)


class Calibrated(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A floor and where it is known from. Shares: 0.03 is 3 %.

    `test` empty: any test of this measurement.

    `spread` is the standard deviation of the sessions' logs; `between` is what single processes
    differ by, without what their repetitions alone would give, and `within` is that of repetitions
    inside one process (None: not known). `false_alarms` is the share of unchanged sessions that
    would fail at `floor`, `at_most` its upper end, given sessions such as these. `unseen` is the
    share of sessions that may be unlike all of these. `autocorrelation` is that of pairs of
    repetitions of one process (None: too few pairs). Ends are those of 99 %.
    """

    metric: str
    test: str = ""
    model: str
    strategy: str
    workload: str
    device: str
    floor: float
    spread: float
    between: float | None = None
    within: float | None = None
    false_alarms: float
    at_most: float | None = None
    unseen: float | None = None
    autocorrelation: float | None = None
    sessions: int
    pairs: int
    date: date
    versions: dict[str, str]

    def covers(self, record: Record) -> bool:
        """Whether the record is a run of what was calibrated, on the same kind of device."""
        on_device = self.device in device_names(record.environment)
        return on_device and self._measures_as(record) and self._for(record.test)

    @property
    def apart(self) -> float:
        """How far processes are apart, as they were seen: the larger of both spreads."""
        return max(self.spread, self.between or 0.0)

    def _measures_as(self, record: Record) -> bool:
        calibrated = (self.model, self.strategy, self.workload)
        return (record.model, record.strategy, record.workload_text) == calibrated

    def same_as(self, other: Calibrated) -> bool:
        """Whether both are floors of one thing, so that the newer takes the other's place."""
        names = ("metric", "test", "model", "strategy", "workload", "device")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def _for(self, test: str) -> bool:
        return not self.test or is_test(self.test, test)


def read_calibrations(folder: Path) -> tuple[Calibrated, ...]:
    """The floors of a project, none where it has no file.

    Raises:
        UsageError: the file is no TOML, or a floor does not say where it is known from.

    """
    path = folder / FILE
    return tuple(_floors_of(path)) if path.is_file() else ()


def _floors_of(path: Path) -> Iterator[Calibrated]:
    for n, entry in enumerate(_entries(path), start=1):
        yield _floor(f"{path}, entry {n}", entry)


def _entries(path: Path) -> list[Any]:
    content = _content(path)
    entries = content.pop("calibrated", [])
    if content or not isinstance(entries, list):
        unknown = ", ".join(content) or "calibrated"
        raise UsageError(
            f"{path}: {unknown} is not known there. 'llmperf calibrate' writes [[calibrated]]."
        )
    return entries


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise UsageError(
            f"{path} cannot be read: {error}. 'llmperf calibrate' writes it."
        ) from error


def write_calibrations(folder: Path, floors: Sequence[Calibrated]) -> Path:
    """Add floors to the project's file.

    Each takes the place of an older one of the same measurement.
    """
    path = folder / FILE
    path.write_text(_as_toml((*_unreplaced(folder, floors), *floors)), encoding="utf-8")
    return path


def _as_toml(floors: Sequence[Calibrated]) -> str:
    return _HEAD + "".join(map(_entry, floors))


def _unreplaced(folder: Path, floors: Sequence[Calibrated]) -> list[Calibrated]:
    """The floors of the file that none of the new ones takes the place of."""
    stored = read_calibrations(folder)
    return [old for old in stored if not any(old.same_as(new) for new in floors)]


def _floor(where: str, entry: Any) -> Calibrated:
    floor = _converted(where, entry)
    _require_provenance(where, floor)
    _require_share(where, floor)
    return floor


def _converted(where: str, entry: Any) -> Calibrated:
    try:
        return msgspec.convert(entry, type=Calibrated)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{where}: {error}. A floor that does not say where it is known from is refused; "
            "'llmperf calibrate' measures one."
        ) from error


def _require_provenance(where: str, floor: Calibrated) -> None:
    if floor.sessions < MIN_SESSIONS or not floor.versions:
        raise UsageError(f"{where}: {_what_a_floor_needs(floor)}")


def _what_a_floor_needs(floor: Calibrated) -> str:
    return (
        f"{floor.sessions} sessions, {len(floor.versions)} versions; a floor needs "
        f"{MIN_SESSIONS} sessions and the versions it was measured with. "
        "'llmperf calibrate' measures one."
    )


def _require_share(where: str, floor: Calibrated) -> None:
    if not 0 < floor.floor < 1:
        raise UsageError(
            f"{where}: the floor is {floor.floor!r}. "
            "A share between 0 and 1 is needed: 0.05 is 5 %."
        )


def _entry(floor: Calibrated) -> str:
    return "\n".join(["", "[[calibrated]]", *_assignments(floor), ""])


def _assignments(floor: Calibrated) -> Iterator[str]:
    """A line for each field that is not empty."""
    for name in floor.__struct_fields__:
        value = getattr(floor, name)
        if value not in (None, ""):
            yield f"{name} = {_value(value)}"


def _value(value: object) -> str:
    """A value as TOML writes it.

    A JSON string is a TOML string but for DEL, which TOML wants escaped.
    """
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, dict):
        return _inline_table(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _inline_table(table: dict[str, object]) -> str:
    pairs = starmap(_pair, sorted(table.items()))
    return f"{{ {', '.join(pairs)} }}"


def _pair(key: str, value: object) -> str:
    return f"{_value(key)} = {_value(value)}"
