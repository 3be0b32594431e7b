"""From pytest's reports to the terminal summary.

What is printed is decided in `report.terminal`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from pytest_llmperf.core.change import Change
from pytest_llmperf.core.record import NOT_RUNS, Record
from pytest_llmperf.plugin.stash import stated_reason
from pytest_llmperf.report.terminal import write_summary

Carried = Sequence[tuple[str, dict[str, Any]]]
"""Ids of tests, and what their reports carry."""

_NAMED = 3
"""Tests that measured nothing and are named."""


def write(
    terminal: pytest.TerminalReporter,
    config: pytest.Config,
    reports: Sequence[pytest.TestReport],
    *,
    disabled: bool,
) -> None:
    """Print what reports carried, from this process or from xdist workers."""
    carried: Carried = [(report.nodeid, report.llmperf) for report in reports]
    records = _records(carried)
    write_summary(
        terminal,
        _in_file_order(_printed(records), carried),
        _reasons(carried, "SKIPPED"),
        _reasons(carried, "INVALID"),
        [*_notes(carried, records), *_note_on_idle(carried, disabled=disabled)],
        config.get_verbosity(),
        errors=_reasons(carried, "ERROR"),
        expected={outcome: _reasons(carried, outcome) for outcome in ("XFAIL", "XPASS")},
        changes=[
            msgspec.convert(change, Change)
            for _, contents in carried
            for change in contents.get("changes", ())
        ],
    )


def _in_file_order(records: Sequence[Record], carried: Carried) -> list[Record]:
    """Return the runs in the order in which their tests stand in their files."""
    places = {nodeid: contents["place"] for nodeid, contents in carried if contents.get("place")}

    def place(record: Record) -> tuple[Any, ...]:
        return (*places.get(record.test, (record.test, 0)), record.created)

    return sorted(records, key=lambda record: tuple(map(_sortable, place(record))))


def _sortable(part: str | int) -> tuple[int, str]:
    """Order numbers by size and before texts."""
    return (part, "") if isinstance(part, int) else (-1, part)


def _records(carried: Carried) -> list[Record]:
    """Return each record once, in its newest state."""
    rows = {row["id"]: row for _, contents in carried for row in contents["records"]}
    return [msgspec.convert(row, Record) for row in rows.values()]


def _notes(carried: Carried, records: Sequence[Record]) -> list[str]:
    """Return the notes, each once."""
    notes = [note for _, contents in carried for note in contents["notes"]]
    notes += [note for record in records for note in _notes_on_pruning(record)]
    stores = [contents["store"] for _, contents in carried if contents.get("store")]
    if records and stores:
        notes.append(f"stored in {stores[0]}; 'llmperf history' shows earlier runs")
    return list(dict.fromkeys(notes))


def _note_on_idle(carried: Carried, *, disabled: bool) -> list[str]:
    """Say which tests of ours ended well and measured nothing: green alone does not show it."""
    with_records = {nodeid for nodeid, contents in carried if contents["records"]}
    idle = dict.fromkeys(
        nodeid
        for nodeid, contents in carried
        if contents["outcome"] == "RECORDED" and nodeid not in with_records
    )
    if not idle:
        return []
    if disabled:
        tests = f"{len(idle)} test{'' if len(idle) == 1 else 's'}"
        return [f"--llmperf-disable: {tests} ran, and nothing was measured or judged"]
    names = ", ".join([*idle][:_NAMED])
    others = f" and {len(idle) - _NAMED} more" if len(idle) > _NAMED else ""
    how = "A test measures with llm.run(…), llm.compare(…) or llm.agreement(…)"
    return [f"measured nothing: {names}{others}. {how}"]


def _reasons(carried: Carried, outcome: str) -> list[tuple[str, str]]:
    """Return the tests that ended so, each with its reason."""
    return [
        (nodeid, stated_reason(contents))
        for nodeid, contents in carried
        if contents["outcome"] == outcome and contents["reason"]
    ]


def _notes_on_pruning(record: Record) -> tuple[str, ...]:
    """Return what a pruned model says of its zeros.

    They buy nothing, or run on sparse tensor cores.
    """
    effective = record.effective
    return () if effective is None or effective.pruned is None else effective.notes


def _printed(records: Sequence[Record]) -> list[Record]:
    """Return the runs, which have the agreement of their strategy in their line.

    An agreement has a line of its own where there is no run.
    """
    runs = [record for record in records if _is_run(record)]
    ran = {(record.test, record.strategy) for record in runs}
    return [
        record for record in records if _is_run(record) or (record.test, record.strategy) not in ran
    ]


def _is_run(record: Record) -> bool:
    return record.workload.get("type") not in NOT_RUNS
