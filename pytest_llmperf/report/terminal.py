"""The summary at the end of a session.

One line a run, then everything that was not a plain answer, with its reason.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_llmperf.report import footnotes, summary
from pytest_llmperf.report.fastest import fastest
from pytest_llmperf.report.table import Column, Table, display_width, lay_out, showable, take, wrap

if TYPE_CHECKING:
    import pytest

    from pytest_llmperf.core.change import Change
    from pytest_llmperf.core.record import Record

_WORST_FIRST = (
    "FAIL",
    "ERROR",
    "INVALID",
    "WAIVED",
    "UNDECIDED",
    "NOT COMPARABLE",
    "XPASS",
    "XFAIL",
    "skipped",
    "PASS",
    "recorded",
)
_DIM = "light"
_UNBOUNDED = 10_000
"""The width of a table that nobody looks at through a window: a log of CI, a file."""

Reasons = Sequence[tuple[str, str]]
"""Pairs of test id and reason."""

_COLOURS = {
    "PASS": "green",
    "FAIL": "red",
    "ERROR": "red",
    "UNDECIDED": "yellow",
    "INVALID": "yellow",
    "NOT COMPARABLE": "yellow",
    "WAIVED": "yellow",
    "XFAIL": "yellow",
    "XPASS": "yellow",
    "too large": "yellow",
}


def write_summary(
    tr: pytest.TerminalReporter,
    records: Sequence[Record],
    skipped: Reasons,
    invalid: Reasons,
    notes: Sequence[str],
    verbosity: int,
    *,
    errors: Reasons = (),
    expected: Mapping[str, Reasons] | None = None,
    changes: Sequence[Change] = (),
) -> None:
    """Print the section "llmperf".

    It is one line in all if `verbosity` is negative, and has more columns if it is positive.

    `skipped`, `invalid` (measured, but not validly) and `errors` (not measured) are pairs of test
    id and reason, `expected` such pairs by outcome (XFAIL, XPASS); `notes` are printed last, as
    they are (where it was stored). `changes` are what a gate compared. Prints nothing for a session
    without anything to say. Judges nothing.
    """
    reasons = {"ERROR": errors, "INVALID": invalid, "SKIPPED": skipped, **(expected or {})}
    if not (records or notes or any(reasons.values())):
        return
    out = Out(tr)
    if verbosity < 0:
        out.one_line(_in_one_line(records, _without_runs(reasons, records), notes))
        return
    tr.write_sep("=", "llmperf")
    _write_runs(out, records, changes, verbose=verbosity > 0)
    _write_undecided(out, records)
    for status, tests in reasons.items():
        out.statuses(status, tests)
    for note in notes:
        out.text(note)


class Out:
    """Lines that fit the terminal, in signs it can show."""

    def __init__(self, tr: pytest.TerminalReporter) -> None:
        writer = tr.config.get_terminal_writer()
        self.tr = tr
        self.width = writer.fullwidth
        self.table_width = self.width if _has_width(writer) else _UNBOUNDED
        self.encoding = getattr(getattr(writer, "_file", None), "encoding", None) or "utf-8"

    def show(self, text: str) -> str:
        """Return `text` in signs that this terminal has."""
        return showable(text, self.encoding)

    def text(
        self, text: str, *, first: str = "", indent: str = "  ", colour: str | None = None
    ) -> None:
        """Write paragraphs, wrapped between words. The colour "light" is dim."""
        for paragraph in text.splitlines():
            for line in wrap(self.show(paragraph), self.width, indent, first):
                self.tr.write_line(line, **_markup(colour))

    def one_line(self, parts: Sequence[str]) -> None:
        """Write the parts that fit in one line, most important first."""
        line, *rest = (self.show(part) for part in parts)
        for part in rest:
            if display_width(f"{line}, {part}") <= self.width:
                line = f"{line}, {part}"
        self.tr.write_line(take(line, self.width))

    def table(self, columns: Sequence[Column]) -> Table:
        """Write a table whose last column holds a status, in its colour, and return it."""
        table = lay_out([column.mapped(self.show) for column in columns], self.table_width)
        self.tr.write_line(self.show("".join(table.header)), bold=True)
        for row, status in zip(table.rows, columns[-1].cells, strict=True):
            self.tr.write(self.show("".join(row[:-1])))
            self.tr.write_line(self.show(row[-1]), **_markup(_COLOURS.get(status)))
        return table

    def statuses(self, status: str, tests: Reasons) -> None:
        """Write tests with a status, by the first line of their reason.

        A test that is there several times is counted.
        """
        colour = _COLOURS.get(status)
        for reason, names in _by_reason(tests).items():
            if len(names) == 1:
                self.text(f"{status} {names[0]}: {reason}", colour=colour)
                continue
            self.text(f"{status} {len(names)} tests: {reason}", colour=colour)
            for name in names:
                self.text(f"- {name}")


def _by_reason(tests: Reasons) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for (test, reason), n in Counter(tests).items():
        name = f"{test} ({n} times)" if n > 1 else test
        names.setdefault(_first_line(reason), []).append(name)
    return names


def _without_runs(reasons: Mapping[str, Reasons], records: Sequence[Record]) -> dict[str, Reasons]:
    """Leave out the tests that made runs: they are counted by them."""
    tests_with_runs = {record.test for record in records}
    return {
        status: [(test, reason) for test, reason in tests if test not in tests_with_runs]
        for status, tests in reasons.items()
    }


def _first_line(reason: str) -> str:
    """Return the start of a reason.

    The rest of a long one (a worker's log) is in pytest's own report of the test.
    """
    first, *rest = reason.strip().splitlines() or ["no reason was given"]
    return f"{first} …" if rest else first


def _markup(colour: str | None) -> dict[str, bool]:
    return {colour: True} if colour else {}


def _has_width(writer: Any) -> bool:
    """Whether lines must fit: on a terminal, or where somebody says how wide one is."""
    file = getattr(writer, "_file", None)
    return "COLUMNS" in os.environ or bool(file is not None and file.isatty())


def _write_runs(
    out: Out, records: Sequence[Record], changes: Sequence[Change], *, verbose: bool
) -> None:
    if not records:
        out.text("no run was recorded")
        return
    columns = summary.columns(records, out.table_width, changes, verbose=verbose)
    dropped = out.table(columns).dropped
    dropped_headers = {column.header for column in dropped}
    visible = [column for column in columns if column.header not in dropped_headers]
    out.text(footnotes.legend(visible, records, verbose=verbose), colour=_DIM)
    out.text(footnotes.left_out(dropped, len(records), out.width), colour=_DIM)
    for line in footnotes.hidden_values(dropped, records) if verbose else ():
        out.text(line, colour=_DIM)
    for line in fastest(records):
        out.text(line)
    for line in footnotes.not_measurable(records, visible):
        out.text(line, colour=_DIM)


def _write_undecided(out: Out, records: Sequence[Record]) -> None:
    """Write each claim once: a test's claims are kept with every run that it made."""
    undecided = [
        (record.test, claim.text, claim.detail)
        for record in records
        for claim in record.claims
        if summary.status(claim.outcome) == "UNDECIDED"
    ]
    for test, text, detail in dict.fromkeys(undecided):
        took = summary.took_of_test(records, test)
        out.text(f"UNDECIDED {test}{took and f', {took}'}", colour="yellow")
        for line in (*text.splitlines(), *detail.splitlines()):
            out.text(line, first="  ", indent="    ")


def _in_one_line(
    records: Sequence[Record], reasons: Mapping[str, Reasons], notes: Sequence[str]
) -> list[str]:
    counts = Counter(summary.status(record.outcome) for record in records)
    for status, tests in reasons.items():
        counts["skipped" if status == "SKIPPED" else status] += len(tests)
    return [_n_runs(len(records)), *_worst_first(counts), *notes]


def _n_runs(n: int) -> str:
    return f"llmperf: {n} run{'' if n == 1 else 's'}"


def _worst_first(counts: Mapping[str, int]) -> list[str]:
    statuses = dict.fromkeys((*_WORST_FIRST, *counts))
    return [f"{counts[status]} {status}" for status in statuses if counts.get(status)]
