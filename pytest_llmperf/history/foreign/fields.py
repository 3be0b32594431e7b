"""Fields of another tool's file, read by name: what is missing or of another kind is named."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pytest_llmperf.errors import UsageError


class Fields:
    """One JSON object of a file, and the names that lead to it."""

    def __init__(self, value: Any, *, file: str, tool: str, path: str = "") -> None:
        self._file = file
        self._tool = tool
        self._path = path
        if not isinstance(value, dict):
            raise self._refusal(path or "the whole file", f"is {_kind(value)}, no object")
        self._value: Mapping[str, Any] = value

    def __contains__(self, name: str) -> bool:
        return name in self._value

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its fields."""
        return tuple(self._value)

    @property
    def plain(self) -> dict[str, str | int | float | bool | None]:
        """Its fields that are texts, numbers and truth values."""
        return {
            name: value
            for name, value in self._value.items()
            if value is None or isinstance(value, str | int | float | bool)
        }

    def number(self, name: str) -> float:
        """Return a finite number. Raises UsageError where there is none."""
        value = self.optional(name)
        if value is None:
            raise self.missing(name, "a number")
        return value

    def optional(self, name: str) -> float | None:
        """Return a finite number; None where the field is absent or null.

        Raises UsageError for anything else.
        """
        value = self._value.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._refusal(self._named(name), f"is {_kind(value)}, a number is needed")
        if not math.isfinite(value):
            raise self._refusal(self._named(name), f"is {value!r}, a finite number is needed")
        return float(value)

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text; the default where the field is absent or null. Raises UsageError."""
        value = self._value.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.missing(name, "a text")
        return value

    def at(self, name: str) -> Fields:
        """Return the object of a field. Raises UsageError where there is none."""
        if self._value.get(name) is None:
            raise self.missing(name, "an object")
        return self._of(self._value[name], name)

    def maybe(self, name: str) -> Fields | None:
        """Return the object of a field; None where it is absent or null."""
        return None if self._value.get(name) is None else self.at(name)

    def rows(self, name: str) -> list[Fields]:
        """Return the objects of a list. Raises UsageError where there is no such list."""
        rows = self._value.get(name)
        if not isinstance(rows, list):
            raise self.missing(name, "a list of objects")
        return [self._of(row, f"{name}[{at}]") for at, row in enumerate(rows)]

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a list of finite numbers; () where the field is absent. Raises UsageError."""
        values = self._value.get(name)
        if values is None:
            return ()
        if not isinstance(values, list):
            raise self.missing(name, "a list of numbers")
        listed = Fields(dict(enumerate(values)), file=self._file, tool=self._tool)
        listed._path = self._named(name)
        return tuple(listed.number(index) for index in range(len(values)))  # type: ignore[arg-type]

    def newer(self, name: str, value: object, known: str) -> UsageError:
        """Return the error of a file whose version is not known."""
        return self._refusal(
            self._named(name),
            f"is {value!r}; {known} is read. The file is of another version of {self._tool}",
        )

    def missing(self, name: str, needed: str) -> UsageError:
        """Return the error of a field that is missing or of another kind."""
        if name in self._value and self._value[name] is not None:
            return self._refusal(
                self._named(name), f"is {_kind(self._value[name])}, {needed} is needed"
            )
        return self._refusal(self._named(name), f"is missing, {needed} is needed")

    def _of(self, value: Any, name: str) -> Fields:
        return Fields(value, file=self._file, tool=self._tool, path=self._named(name))

    def _named(self, name: object) -> str:
        return f"{self._path}.{name}" if self._path else str(name)

    def _refusal(self, name: str, problem: str) -> UsageError:
        return UsageError(
            f"{self._file}: field {name!r} {problem}. It was read as a file of {self._tool}; "
            "nothing of it was imported."
        )


def _kind(value: object) -> str:
    names = {str: "a text", bool: "a truth value", list: "a list", dict: "an object"}
    text = names.get(type(value), type(value).__name__)
    return f"{text} ({value!r:.40})" if isinstance(value, str | bool) else text


def moment(seconds: float) -> str:
    """Return seconds since 1970 as an ISO 8601 time."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def percentiles(
    stats: Fields, names: Mapping[str, str], scale: float
) -> Iterator[tuple[str, float]]:
    """Give statistics by our names ("p50") from theirs ("median"), where they are there."""
    for ours, theirs in names.items():
        value = stats.optional(theirs)
        if value is not None:
            yield ours, value * scale
