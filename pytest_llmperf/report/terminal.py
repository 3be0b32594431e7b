"""The summary at the end of a session: one line a run, then everything that was not a plain answer, with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_llmperf.report import summary
from pytest_llmperf.report.fastest import fastest
from pytest_llmperf.report.table import Column, Table, display_width, lay_out, showable, take, wrap

if TYPE_CHECKING:
    import pytest

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
Named = Sequence[tuple[str, str]]
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
    skipped: Named,
    invalid: Named,
    notes: Sequence[str],
    verbosity: int,
    *,
    errors: Named = (),
    expected: Mapping[str, Named] | None = None,
) -> None:
    """Print the section "llmperf": one line in all if `verbosity` is negative, more columns if it is positive.

    `skipped`, `invalid` (measured, but not validly) and `errors` (not measured) are pairs of test id and reason, `expected`
    such pairs by outcome (XFAIL, XPASS); `notes` are printed last, as they are (where it was stored).
    Prints nothing for a session without anything to say. Judges nothing.
    """
    expected = expected or {}
    if not (records or skipped or invalid or errors or notes or any(expected.values())):
        return
    out = Out(tr)
    if verbosity < 0:
        counted = _without_runs(
            {"INVALID": invalid, "ERROR": errors, "skipped": skipped, **expected}, records
        )
        out.one_line(_in_one_line(records, counted, notes))
        return
    tr.write_sep("=", "llmperf")
    _write_runs(out, records, verbose=verbosity > 0)
    _write_undecided(out, records)
    out.named("ERROR", errors)
    out.named("INVALID", invalid)
    out.named("SKIPPED", skipped)
    for status, tests in expected.items():
        out.named(status, tests)
    for note in notes:
        out.text(note)


class Out:
    """Lines that fit the terminal, in signs it can show."""

    def __init__(self, tr: pytest.TerminalReporter) -> None:
        writer = tr.config.get_terminal_writer()
        self.tr = tr
        self.width = writer.fullwidth
        self.encoding = getattr(getattr(writer, "_file", None), "encoding", None) or "utf-8"

    def show(self, text: str) -> str:
        """`text` in signs that this terminal has."""
        return showable(text, self.encoding)

    def text(
        self, text: str, *, first: str = "", indent: str = "  ", colour: str | None = None
    ) -> None:
        """Paragraphs, wrapped between words."""
        for paragraph in text.splitlines():
            for line in wrap(self.show(paragraph), self.width, indent, first):
                self.tr.write_line(line, **_markup(colour))

    def one_line(self, parts: Sequence[str]) -> None:
        """The parts that fit in one line, most important first."""
        line, *rest = (self.show(part) for part in parts)
        for part in rest:
            if display_width(f"{line}, {part}") <= self.width:
                line = f"{line}, {part}"
        self.tr.write_line(take(line, self.width))

    def table(self, columns: Sequence[Column]) -> Table:
        """A table whose last column holds a status, in its colour. Returns what was laid out."""
        table = lay_out([c.mapped(self.show) for c in columns], self.width)
        self.tr.write_line(self.show("".join(table.header)), bold=True)
        for row, status in zip(table.rows, columns[-1].cells, strict=True):
            self.tr.write(self.show("".join(row[:-1])))
            self.tr.write_line(self.show(row[-1]), **_markup(_COLOURS.get(status)))
        return table

    def named(self, status: str, tests: Named) -> None:
        """Tests with a status, by the first line of their reason.

        One that is there several times is counted.
        """
        by_reason: dict[str, list[str]] = {}
        for (test, reason), n in Counter(tests).items():
            by_reason.setdefault(_first_line(reason), []).append(
                f"{test} ({n} times)" if n > 1 else test
            )
        for reason, names in by_reason.items():
            if len(names) == 1:
                self.text(f"{status} {names[0]}: {reason}", colour=_COLOURS.get(status))
                continue
            self.text(f"{status} {len(names)} tests: {reason}", colour=_COLOURS.get(status))
            for name in names:
                self.text(f"- {name}")


def _without_runs(expected: Mapping[str, Named], records: Sequence[Record]) -> dict[str, Named]:
    """A test with runs is counted by them."""
    ran = {record.test for record in records}
    return {
        status: [each for each in tests if each[0] not in ran] for status, tests in expected.items()
    }


def _first_line(reason: str) -> str:
    """Of a long reason (a worker's log) the rest is in pytest's own report of the test."""
    first, *rest = reason.strip().splitlines() or ["no reason was given"]
    return f"{first} …" if rest else first


def _markup(colour: str | None) -> dict[str, bool]:
    return {colour: True} if colour else {}


def _write_runs(out: Out, records: Sequence[Record], *, verbose: bool) -> None:
    if not records:
        out.text("no run was recorded")
        return
    columns = summary.columns(records, out.width, verbose=verbose)
    table = out.table(columns)
    shown = [c for c in columns if c.header not in {d.header for d in table.dropped}]
    for line in (
        summary.legend(shown, records, verbose=verbose),
        summary.left_out(table.dropped, len(records), out.width),
    ):
        if line:
            out.text(line)
    for line in (*fastest(records), *summary.not_measurable(records, shown)):
        out.text(line)


def _write_undecided(out: Out, records: Sequence[Record]) -> None:
    """Each claim once: a test's claims are kept with every run that it made."""
    undecided = {
        (r.test, c.text, c.detail): None
        for r in records
        for c in r.claims
        if summary.status(c.outcome) == "UNDECIDED"
    }
    for test, text, detail in undecided:
        out.text(f"UNDECIDED {test}", colour="yellow")
        for line in (*text.splitlines(), *detail.splitlines()):
            out.text(line, first="  ", indent="    ")


def _in_one_line(
    records: Sequence[Record], others: Mapping[str, Named], notes: Sequence[str]
) -> list[str]:
    counts = Counter(summary.status(r.outcome) for r in records)
    for status, tests in others.items():
        counts[status] += len(tests)
    named = [*_WORST_FIRST, *(name for name in counts if name not in _WORST_FIRST)]
    runs = f"llmperf: {len(records)} run{'' if len(records) == 1 else 's'}"
    return [runs, *(f"{counts[name]} {name}" for name in named if counts[name]), *notes]
