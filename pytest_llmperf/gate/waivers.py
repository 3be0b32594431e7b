"""Waivers: known regressions that somebody answers for until a date.

A reviewed file in the tested project.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from pytest_llmperf.core.environment import device_names
from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import UsageError, did_you_mean
from pytest_llmperf.settings.limits import gateable
from pytest_llmperf.settings.options import DEFAULT_WAIVERS

_EXAMPLE = (
    '[[waiver]] with test = "tests/test_it.py::test_speed", metric = "throughput", owner = "…", '
    'reason = "…", expires = 2027-01-31 and, if it is for one device only, device'
)


UNREADABLE = (ValueError, OSError, RecursionError)
"""What reading a file raises that is no TOML."""


class Waiver(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who answers for a metric of a test through the day it `expires`.

    A `test` without parameters means every parameter. `device` is a device's name ("NVIDIA H200")
    or kind ("cuda"), or the CPU's model; empty for every device.
    """

    test: str
    metric: str
    owner: str
    reason: str
    expires: date
    device: str = ""

    @property
    def file(self) -> str:
        """The file of its test."""
        return self.test.partition("::")[0]

    def covers(self, record: Record, metric: str) -> bool:
        """Whether it is for this metric of this record."""
        is_subject = self.metric == metric and is_test(self.test, record.test)
        return is_subject and self._is_for_device_of(record)

    def _is_for_device_of(self, record: Record) -> bool:
        return not self.device or self.device in device_names(record.environment)

    def is_unknown(self, tests: Iterable[str]) -> bool:
        """Whether it is for none of the tests."""
        return not any(is_test(self.test, test) for test in tests)


class Waivers(Struct, frozen=True, kw_only=True):
    """What the file holds. Those that have expired waive nothing; the session fails for them."""

    path: Path
    active: tuple[Waiver, ...] = ()
    expired: tuple[Waiver, ...] = ()

    def of(self, record: Record, metric: str) -> Waiver | None:
        """The waiver for a metric of a record."""
        return next((waiver for waiver in self.active if waiver.covers(record, metric)), None)

    def unknown(self, tests: Iterable[str], known_file: Callable[[str], bool]) -> list[Waiver]:
        """Waivers for tests that do not exist.

        Only files that `known_file` are judged, since others were not looked into.
        """
        tests = list(tests)
        return [
            waiver for waiver in self._all if known_file(waiver.file) and waiver.is_unknown(tests)
        ]

    @property
    def _all(self) -> tuple[Waiver, ...]:
        return (*self.active, *self.expired)


def is_test(node_id: str, test: str) -> bool:
    """Whether `node_id` is that of the test, or the same without its parameters."""
    return node_id == test or (test.startswith(f"{node_id}[") and "[" not in node_id)


def _today() -> date:
    return datetime.now(UTC).date()


def read_waivers(path: Path, *, today: Callable[[], date] = _today) -> Waivers:
    """The waivers of a file.

    None where the file is not there and was not asked for by another name than the usual.

    Raises:
        UsageError: the file is no TOML, or an entry is not complete, has an unknown key, or waives
            what cannot be waived.
    """
    if not path.is_file():
        _require_default_name(path)
        return Waivers(path=path)
    return _sorted_by_expiry(path, _waivers_of(path), today())


def _waivers_of(path: Path) -> list[Waiver]:
    return [_waiver(path, n, entry) for n, entry in enumerate(_entries(path), start=1)]


def _require_default_name(path: Path) -> None:
    """Raise UsageError where a file that is not there was asked for by a name of its own."""
    if path.name != DEFAULT_WAIVERS:
        raise UsageError(
            f"--llmperf-waivers={path}: there is no such file. "
            f"Leave the option out, or write {_EXAMPLE}."
        )


def _sorted_by_expiry(path: Path, waivers: Sequence[Waiver], day: date) -> Waivers:
    """The waivers that hold on the day apart from those that do no more."""
    active, expired = _active(waivers, day), _expired(waivers, day)
    return Waivers(path=path, active=active, expired=expired)


def _active(waivers: Sequence[Waiver], day: date) -> tuple[Waiver, ...]:
    return tuple(waiver for waiver in waivers if waiver.expires >= day)


def _expired(waivers: Sequence[Waiver], day: date) -> tuple[Waiver, ...]:
    return tuple(waiver for waiver in waivers if waiver.expires < day)


def _entries(path: Path) -> list[Any]:
    content = _content(path)
    entries = content.pop("waiver", [])
    if content or not isinstance(entries, list):
        raise UsageError(f"{path}: {_what_is_wrong(content)}. Write {_EXAMPLE}.")
    return entries


def _what_is_wrong(content: dict[str, Any]) -> str:
    if not content:
        return "'waiver' is not a list of tables"
    return f"{', '.join(map(repr, content))} is not known"


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise UsageError(f"{path} cannot be read: {error}. Write {_EXAMPLE}.") from error


def _waiver(path: Path, n: int, entry: Any) -> Waiver:
    where = f"{path}, waiver {n}{_test_in_parentheses(entry)}"
    waiver = _converted(where, entry)
    _require_text(where, waiver)
    _require_metric(where, waiver.metric)
    return waiver


def _test_in_parentheses(entry: Any) -> str:
    """The test that an entry names; "" where it names none."""
    if isinstance(entry, dict) and "test" in entry:
        return f" ({entry['test']})"
    return ""


def _converted(where: str, entry: Any) -> Waiver:
    try:
        return msgspec.convert(entry, type=Waiver)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {error}. Write {_EXAMPLE}.") from error


def _require_text(where: str, waiver: Waiver) -> None:
    for field in ("test", "owner", "reason"):
        if not getattr(waiver, field).strip():
            raise UsageError(
                f"{where}: {field!r} is empty. A waiver needs somebody who answers for it, and why."
            )


def _require_metric(where: str, metric: str) -> None:
    if metric.startswith("agreement"):
        raise UsageError(
            f"{where}: {metric!r} cannot be waived. "
            "Performance metrics can; answers that are wrong are wrong on every day."
        )
    _require_known_metric(where, metric)


def _require_known_metric(where: str, metric: str) -> None:
    known = gateable()
    if metric not in known:
        raise UsageError(f"{where}: {_unknown_metric(metric, known)}")


def _unknown_metric(metric: str, known: Sequence[str]) -> str:
    near = did_you_mean(metric, known, otherwise=f"Metrics: {', '.join(known)}.")
    return f"metric {metric!r} is not known.{near}"
