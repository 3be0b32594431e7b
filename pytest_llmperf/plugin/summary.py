"""From pytest's reports to the terminal summary; what is printed is decided in `report.terminal`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from pytest_llmperf.core.record import NOT_RUNS, Record
from pytest_llmperf.plugin.stash import stated_reason
from pytest_llmperf.report.terminal import write_summary


def write(
    tr: pytest.TerminalReporter, config: pytest.Config, reports: Sequence[pytest.TestReport]
) -> None:
    """Collect records, skips, errors and notes that reports carried, from this process or from xdist workers."""
    carried: list[tuple[str, dict[str, Any]]] = [(r.nodeid, r.llmperf) for r in reports]
    records = {
        row["id"]: msgspec.convert(row, Record) for _, each in carried for row in each["records"]
    }
    notes = dict.fromkeys(note for _, each in carried for note in each["notes"])
    notes |= dict.fromkeys(note for record in records.values() for note in _of_pruning(record))
    stored = next((each["store"] for _, each in carried if each.get("store") and records), None)
    if stored:
        notes[f"stored in {stored}; 'llmperf history' shows earlier runs"] = None
    write_summary(
        tr,
        # As plain, so under xdist.
        sorted(_shown(list(records.values())), key=lambda record: (record.test, record.created)),
        _named(carried, {"SKIPPED"}),
        _named(carried, {"INVALID"}),
        list(notes),
        config.get_verbosity(),
        errors=_named(carried, {"ERROR"}),
        expected={word: _named(carried, {word}) for word in ("XFAIL", "XPASS")},
    )


def _named(
    carried: Sequence[tuple[str, dict[str, Any]]], outcomes: set[str]
) -> list[tuple[str, str]]:
    return [
        (nodeid, stated_reason(each))
        for nodeid, each in carried
        if each["outcome"] in outcomes and each["reason"]
    ]


def _of_pruning(record: Record) -> tuple[str, ...]:
    """What a pruned model says of its zeros: that they buy nothing, or what runs on sparse tensor cores."""
    return (
        ()
        if record.effective is None or record.effective.pruned is None
        else record.effective.notes
    )


def _shown(records: list[Record]) -> list[Record]:
    """The runs, with the agreement of their strategy in their line.

    An agreement has a line of its own where there is no run.
    """
    ran = {
        (record.test, record.strategy)
        for record in records
        if record.workload.get("type") not in NOT_RUNS
    }
    return [
        r
        for r in records
        if r.workload.get("type") not in NOT_RUNS or (r.test, r.strategy) not in ran
    ]
