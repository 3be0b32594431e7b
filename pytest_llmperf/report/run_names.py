"""Names of runs and tests that are as short as they can be and still differ. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pytest_llmperf.report.table import without_file

if TYPE_CHECKING:
    from pytest_llmperf.core.record import Record


def full_names(records: Sequence[Record]) -> tuple[str, ...]:
    """Return the test of each run, with what tells its runs apart."""
    return _with_attempts(_with_labels(records), records)


def brief_names(records: Sequence[Record]) -> tuple[str, ...]:
    """Return full names but for what the strategy column says again: pytest's -k takes them."""
    strategies = {record.strategy for record in records}
    names = (_without_parameter(name, strategies) for name in _with_labels(records))
    return _with_attempts(names, records)


def short_names(ids: Sequence[str]) -> list[str]:
    """Return test ids without their file, or without its folders.

    Different tests keep different names.
    """
    for shortened in (_function, without_file, _without_folders):
        names = {test: shortened(test) for test in ids}
        if len(set(names.values())) == len(names):
            return [names[test] for test in ids]
    return list(ids)


def _function(test: str) -> str:
    """Return what -k takes: the name of the function, with its parameters."""
    head, bracket, parameters = without_file(test).partition("[")
    return head.rpartition("::")[2] + bracket + parameters


def _without_folders(test: str) -> str:
    path, separator, name = test.partition("::")
    return path.rpartition("/")[2] + separator + name


def _with_labels(records: Sequence[Record]) -> list[str]:
    """Add the run's label to its short name, where a test made several runs that look the same."""
    looks = Counter(map(_look, records))
    names = short_names([record.test for record in records])
    return [
        f"{name} {record.label}" if record.label and looks[_look(record)] > 1 else name
        for name, record in zip(names, records, strict=True)
    ]


def _look(record: Record) -> tuple[str, str, str]:
    return record.test, record.strategy, record.workload_text


def _with_attempts(names: Iterable[str], records: Sequence[Record]) -> tuple[str, ...]:
    """Mark the runs that the gate had measured once more."""
    return tuple(
        f"{name}, again" if _is_repeated(record) else name
        for name, record in zip(names, records, strict=True)
    )


def _is_repeated(record: Record) -> bool:
    return bool(record.extra.get("attempt", 1) > 1)


def _without_parameter(name: str, strategies: set[str]) -> str:
    head, _, parameter = name.partition("[")
    return head if head and parameter.removesuffix("]") in strategies else name
