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

from msgspec import Struct

from pytest_llmperf.core.format import MISSING
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
    "ratio",
    "99 % interval",
    "verdict",
)


class Compared(Struct, frozen=True, kw_only=True):
    """One metric of one run as texts.

    `before`, `ratio` and `interval` are empty where nothing was compared; `reason` says why.

    `verdict` is an outcome; after "worse" stands the outcome of a test that does not fail for it.
    """

    test: str
    strategy: str
    workload: str
    metric: str
    before: str
    after: str
    ratio: str
    interval: str
    verdict: str
    reason: str = ""


def code(text: str, length: int = _NAME_LENGTH) -> str:
    """Any text as code in a Markdown table: one line, cut in its middle past `length` columns."""
    shown = shorten(showable(text, "utf-8"), length)
    return (
        f"<code>{_SPECIAL.sub(lambda found: f'&#{ord(found[0])};', shown)}</code>"
        if shown.strip()
        else ""
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table of GitHub's Markdown. Cells are Markdown already (`code`)."""
    return [_row(header), _row(["---"] * len(header)), *map(_row, rows)]


def comment(found: Sequence[Compared], *, title: str = "llmperf", notes: Sequence[str] = ()) -> str:
    """The body: how many runs of each verdict, the rows with the worst first, why nothing was before, and what went wrong.

    Rows that have no room are counted. `notes` are said last, each a paragraph: what is wrong with which test.
    """
    rows = sorted(found, key=lambda each: _rank(each.verdict))
    head = [MARK, f"### {title}", "", _counts(rows) or "No run was recorded.", ""]
    room = MAX_LENGTH - sum(len(line) + 1 for line in head) - _SPARE
    tail = _fitting([(f"- {code(note, _REASON_LENGTH)}",) for note in notes], room // 4)
    reasons = _fitting([(line,) for line in _reasons(rows)], room // 8)
    shown = _fitting([_cells(each) for each in rows], room * 5 // 8)
    left_out = len(rows) - len(shown)
    more = [f"{left_out} more rows had no room; the first are the worst.", ""] if left_out else []
    lines = table(_HEADER, shown) if shown else []
    below = [each[0] for each in (*reasons, *tail)]
    return "\n".join([*head, *lines, *([""] if lines else []), *more, *below]).rstrip() + "\n"


def _cells(each: Compared) -> tuple[str, ...]:
    names = (code(each.test), code(each.strategy), code(each.workload), code(each.metric))
    numbers = (each.before, each.after, each.ratio, each.interval)
    verdict = f"**{each.verdict}**" if each.verdict == "FAIL" else each.verdict
    return (*names, *(_plain(text) or MISSING for text in numbers), verdict)


def _plain(text: str) -> str:
    """Numbers and units.

    Brackets and signs of Markdown that they may hold are character references.
    """
    return re.sub(r"[\[\]*_|<>~`\\]", lambda found: f"&#{ord(found[0])};", showable(text, "utf-8"))


def _reasons(rows: Sequence[Compared]) -> list[str]:
    """Each reason once, with the row that it holds for, or how many they are."""
    by_reason: dict[str, list[Compared]] = {}
    for each in rows:
        if each.reason:
            by_reason.setdefault(each.reason, []).append(each)
    return [
        f"- {_named(found)}: {code(reason, _REASON_LENGTH)}" for reason, found in by_reason.items()
    ]


def _named(rows: Sequence[Compared]) -> str:
    return f"{len(rows)} rows" if len(rows) > 1 else f"{code(rows[0].test)} {code(rows[0].metric)}"


def _counts(rows: Sequence[Compared]) -> str:
    """Of runs, each by its worst row."""
    worst: dict[tuple[str, str, str], str] = {}
    for each in rows:
        worst.setdefault((each.test, each.strategy, each.workload), each.verdict.partition(",")[0])
    counts = Counter(worst.values())
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in sorted(counts, key=_rank))


def _rank(verdict: str) -> int:
    word = verdict.partition(",")[0]
    return _WORST_FIRST.index(word) if word in _WORST_FIRST else len(_WORST_FIRST)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _fitting(rows: Sequence[tuple[str, ...]], room: int) -> list[tuple[str, ...]]:
    """The first rows that fit in `room` characters."""
    fitting = []
    for cells in rows:
        room -= len(_row(cells)) + 1
        if room < 0:
            break
        fitting.append(cells)
    return fitting
