"""Markdown for a pull request's comment and for a job's page: what was measured before and after.

Pure.

Any text is shown as code in HTML (`<code>`), where GitHub and GitLab make no links and no mentions,
with each sign that Markdown or HTML could take for its own as a character reference. So a name
cannot leave its cell.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from pytest_llmperf.core.change import Change
from pytest_llmperf.core.environment import device_names
from pytest_llmperf.core.format import MISSING
from pytest_llmperf.core.record import Environment, Record
from pytest_llmperf.report.before_after import signed_percent
from pytest_llmperf.report.changes import labelled_test, number_cells
from pytest_llmperf.report.summary import status
from pytest_llmperf.report.table import shorten, showable

MARK = "<!-- llmperf -->"
"""First line of a comment's body, by which a later one finds the comment that it replaces."""

MAX_LENGTH = 60_000
"""Characters of a body. GitHub takes 65,536 for a comment, and refuses more."""

_NAME_LENGTH = 160
_REASON_LENGTH = 1000
_SPARE = 500
_SPECIAL = re.compile(r"[^\w \-.,:;/+=\[\]]|_(?![^\W_])|(?<![^\W_])_|:(?=/)|(?<=www)\.|(?<=WWW)\.")
_WORST_FIRST = (
    "FAIL",
    "ERROR",
    "INVALID",
    "worse",
    "UNDECIDED",
    "WAIVED",
    "NOT COMPARABLE",
    "XPASS",
    "XFAIL",
    "SKIPPED",
    "PASS",
)
_HEADER = (
    "test",
    "strategy",
    "workload",
    "metric",
    "before",
    "after",
    "change",
    "99 % interval",
    "verdict",
)


def code(text: str, length: int = _NAME_LENGTH) -> str:
    """Any text as code in a Markdown table: one line, cut in its middle past `length` columns."""
    line = shorten(showable(text, "utf-8"), length)
    return f"<code>{_SPECIAL.sub(_reference, line)}</code>" if line.strip() else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table of GitHub's Markdown. Cells are Markdown already (`code`)."""
    return [_row(header), _row(["---"] * len(header)), *map(_row, rows)]


def origin(records: Iterable[Record]) -> str:
    """Where records were measured, and of which commit: a line of Markdown; "" without records."""
    environments = [record.environment for record in records]
    devices = dict.fromkeys(name for one in environments for name in device_names(one)[:1])
    commits = dict.fromkeys(filter(None, map(_commit, environments)))
    parts = [f"Measured on {', '.join(map(code, devices))}" if devices else ""]
    parts += [f"commit {', '.join(map(code, commits))}" if commits else ""]
    return ", ".join(filter(None, parts))


def _commit(environment: Environment) -> str:
    facts = environment.facts
    if not facts.get("git_commit"):
        return ""
    branch = f" of {facts['git_branch']}" if facts.get("git_branch") else ""
    dirty = " with uncommitted changes" if facts.get("git_dirty") else ""
    return f"{str(facts['git_commit'])[:12]}{branch}{dirty}"


def comment(
    changes: Sequence[Change],
    *,
    title: str = "llmperf",
    origin: str = "",
    notes: Sequence[str] = (),
) -> str:
    """The body: counts of verdicts, the rows with the worst first, reasons, and what went wrong.

    Runs are counted, each by its worst row. Reasons say why nothing was compared or decided. Rows
    that have no room are counted. The `notes` come last, each a paragraph.
    """
    rows = sorted(changes, key=lambda change: _rank(_verdict(change)))
    head = [MARK, f"### {title}", "", _counts(rows) or "No run was recorded.", ""]
    head += [f"{origin}.", ""] if origin else []
    room = MAX_LENGTH - sum(len(line) + 1 for line in head) - _SPARE
    fitting_rows = _fitting(map(_cells, rows), room * 5 // 8)
    lines = [
        *head,
        *_shown_table(fitting_rows, len(rows)),
        *_fitting_lines(_reasons(rows), room // 8),
        *_fitting_lines((f"- {code(note, _REASON_LENGTH)}" for note in notes), room // 4),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _shown_table(rows: Sequence[tuple[str, ...]], n_all: int) -> list[str]:
    """The table of the rows that have room, and how many have none."""
    lines = [*table(_HEADER, rows), ""] if rows else []
    if len(rows) < n_all:
        n_left_out = n_all - len(rows)
        lines += [f"{n_left_out} more rows had no room; the first are the worst.", ""]
    return lines


def _cells(change: Change) -> tuple[str, ...]:
    names = (labelled_test(change), change.strategy, change.workload_text, change.metric)
    verdict = _verdict(change)
    return (
        *map(code, names),
        *map(_plain, _number_cells(change)),
        f"**{verdict}**" if verdict == "FAIL" else verdict,
    )


def _number_cells(change: Change) -> tuple[str, str, str, str]:
    """The cells before, after, change and its interval, both in per cent."""
    before, after, _, interval = number_cells(change)
    if change.ratio is None:
        return before, after, MISSING, interval
    if change.low is None or change.high is None:
        return before, after, signed_percent(change.ratio), MISSING
    ends = f"{signed_percent(change.low)} to {signed_percent(change.high)}"
    return before, after, signed_percent(change.ratio), ends


def _verdict(change: Change) -> str:
    """The outcome, where FAIL is what a test's failure says.

    What looks worse and failed nothing is called that, with its test's outcome.
    """
    if change.outcome == "FAIL" != change.test_outcome:
        return f"worse, test: {status(change.test_outcome)}"
    return change.outcome


def _plain(text: str) -> str:
    """Numbers and units.

    Brackets and signs of Markdown that they may hold are character references.
    """
    return re.sub(r"[\[\]*_|<>~`\\]", _reference, showable(text, "utf-8"))


def _reference(sign: re.Match[str]) -> str:
    return f"&#{ord(sign[0])};"


def _reasons(rows: Sequence[Change]) -> list[str]:
    """Each reason once, with the row that it holds for, or how many they are."""
    by_reason: dict[str, list[Change]] = {}
    for change in rows:
        if change.reason:
            by_reason.setdefault(change.reason, []).append(change)
    return [
        f"- {_rows_text(changes)}: {code(reason, _REASON_LENGTH)}"
        for reason, changes in by_reason.items()
    ]


def _rows_text(rows: Sequence[Change]) -> str:
    if len(rows) > 1:
        return f"{len(rows)} rows"
    return f"{code(labelled_test(rows[0]))} {code(rows[0].metric)}"


def _counts(rows: Sequence[Change]) -> str:
    """How many runs have which verdict, each by its worst row, which is its first."""
    worst: dict[tuple[str, str, str], str] = {}
    for change in rows:
        run = (labelled_test(change), change.strategy, change.workload_text)
        worst.setdefault(run, _word(_verdict(change)))
    counts = Counter(worst.values())
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in sorted(counts, key=_rank))


def _rank(verdict: str) -> int:
    word = _word(verdict)
    return _WORST_FIRST.index(word) if word in _WORST_FIRST else len(_WORST_FIRST)


def _word(verdict: str) -> str:
    """The first word of a verdict, by which it is counted and ranked."""
    return verdict.partition(",")[0]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _fitting_lines(lines: Iterable[str], room: int) -> list[str]:
    """The first lines that fit in `room` characters."""
    return [line for (line,) in _fitting(((line,) for line in lines), room)]


def _fitting(rows: Iterable[tuple[str, ...]], room: int) -> list[tuple[str, ...]]:
    """The first rows that fit in `room` characters."""
    fitting = []
    for cells in rows:
        room -= len(_row(cells)) + 1
        if room < 0:
            break
        fitting.append(cells)
    return fitting
