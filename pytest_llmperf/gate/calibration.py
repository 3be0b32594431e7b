"""Calibrated floors: how much sessions of a measurement differ without a change.

Each says where it is known from.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from pytest_llmperf.core.environment import device_names
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts.against_history import MIN_SESSIONS
from pytest_llmperf.errors import UsageError
from pytest_llmperf.gate.waivers import is_test

FILE = "llmperf-calibration.toml"
_HEAD = (
    "# Written by 'llmperf calibrate', to be reviewed and committed. "
    "Floors are shares: 0.03 is 3 %.\n"
)


class Calibrated(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A floor and where it is known from. Shares: 0.03 is 3 %.

    `test` empty: any test of this measurement.

    `spread` is the standard deviation of the sessions' logs, `false_alarms` the share of unchanged
    sessions that would fail at `floor`, `autocorrelation` that of pairs of repetitions (None: too
    few pairs).
    """

    metric: str
    test: str = ""
    model: str
    strategy: str
    workload: str
    device: str
    floor: float
    spread: float
    false_alarms: float
    autocorrelation: float | None = None
    sessions: int
    pairs: int
    date: date
    versions: dict[str, str]

    def covers(self, record: Record) -> bool:
        """Whether the record is a run of what was calibrated, on the same kind of device."""
        same = (record.model, record.strategy, record.workload_text) == (
            self.model,
            self.strategy,
            self.workload,
        )
        return same and self.device in device_names(record.environment) and self._for(record.test)

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
    if not path.is_file():
        return ()
    return tuple(_checked(path, n, entry) for n, entry in enumerate(_entries(path), start=1))


def _entries(path: Path) -> list[Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read: {error}. 'llmperf calibrate' writes it."
        ) from error
    entries = content.pop("calibrated", [])
    if content or not isinstance(entries, list):
        unknown = ", ".join(content) or "calibrated"
        raise UsageError(
            f"{path}: {unknown} is not known there. 'llmperf calibrate' writes [[calibrated]]."
        )
    return entries


def write_calibrations(folder: Path, floors: Sequence[Calibrated]) -> Path:
    """Add floors to the project's file.

    Each takes the place of an older one of the same measurement.
    """
    unchanged = [
        old for old in read_calibrations(folder) if not any(old.same_as(new) for new in floors)
    ]
    path = folder / FILE
    path.write_text(_HEAD + "".join(map(_entry, (*unchanged, *floors))), encoding="utf-8")
    return path


def _checked(path: Path, n: int, entry: Any) -> Calibrated:
    where = f"{path}, entry {n}"
    try:
        floor = msgspec.convert(entry, type=Calibrated)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{where}: {error}. A floor that does not say where it is known from is refused; "
            "'llmperf calibrate' measures one."
        ) from error
    if floor.sessions < MIN_SESSIONS or not floor.versions:
        raise UsageError(
            f"{where}: {floor.sessions} sessions, {len(floor.versions)} versions; a floor needs "
            f"{MIN_SESSIONS} sessions and the versions it was measured with. "
            "'llmperf calibrate' measures one."
        )
    if not 0 < floor.floor < 1:
        raise UsageError(
            f"{where}: the floor is {floor.floor!r}. "
            "A share between 0 and 1 is needed: 0.05 is 5 %."
        )
    return floor


def _entry(floor: Calibrated) -> str:
    fields = {name: getattr(floor, name) for name in floor.__struct_fields__}
    lines = [
        f"{name} = {_value(value)}" for name, value in fields.items() if value not in (None, "")
    ]
    return "\n".join(["", "[[calibrated]]", *lines, ""])


def _value(value: object) -> str:
    """A value as TOML writes it.

    A JSON string is a TOML string but for DEL, which TOML wants escaped.
    """
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_value(k)} = {_value(v)}' for k, v in sorted(value.items()))} }}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
