"""Text of a given width: columns that shrink or are dropped, and lines that wrap. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from pytest_llmperf.plain_text import inert

GAP = 2
_PLAIN = str.maketrans(
    {
        "±": "+-",
        "…": "~",
        "–": "-",  # noqa: RUF001
        "µ": "u",
        "≥": ">=",
        "≤": "<=",
        "→": "->",
        "×": "x",  # noqa: RUF001
    }
)
"""Our signs -> what stands for them on a terminal that lacks them."""

_QUANTITY = re.compile(
    r"(?<=\d) (?=(?:%|tok/s|[kMGT]?B|[mµnu]?s|min|h|[mk]?J)(?:\W|$))|(?<=[<>=≥≤]) (?=\d)"
)
_NO_BREAK = "\u00a0"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: its header, its cells, and how it gives way.

    Unimportant (small `rank`) columns are dropped first.

    `brief` are shorter cells, taken where the full ones have no room. `floor` is the width down to
    which cells may then be shortened in the middle; None: never shortened (numbers). `rank` None:
    never dropped.
    """

    header: str
    cells: tuple[str, ...]
    rank: int | None
    right: bool = False
    floor: int | None = None
    brief: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Columns of the terminal that the widest cell or the header takes."""
        return max(display_width(text) for text in (self.header, *self.cells))

    @property
    def least(self) -> int:
        """The width it can be shortened to."""
        width = self.in_brief.width
        if self.floor is None:
            return width
        return min(width, max(self.floor, display_width(self.header)))

    @property
    def in_brief(self) -> Column:
        """The column with its shorter cells, if it has some."""
        return replace(self, cells=self.brief or self.cells)

    def mapped(self, text: Callable[[str], str]) -> Column:
        """Return the same column with its header and each cell passed through `text`."""
        return replace(
            self,
            header=text(self.header),
            cells=tuple(map(text, self.cells)),
            brief=tuple(map(text, self.brief)),
        )


@dataclass(frozen=True)
class Table:
    """A table that fits.

    `rows` are split in cells, padded but for the last, so that a cell can be coloured alone.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    dropped: tuple[Column, ...]


def lay_out(columns: Sequence[Column], width: int) -> Table:
    """Drop the least important columns and shorten the others until the table fits in `width`.

    Lines never wrap.

    What is never dropped is shortened below its floor, and at last cut, where not even that fits.
    """
    remaining, dropped = _drop(columns, width)
    if _total([column.width for column in remaining]) > width:
        remaining = [column.in_brief for column in remaining]
    widths = _shrink(remaining, width)
    header = _row([column.header for column in remaining], remaining, widths)
    cells_by_row = zip(*(column.cells for column in remaining), strict=True)
    rows = tuple(_row(cells, remaining, widths) for cells in cells_by_row)
    return Table(header, rows, tuple(dropped))


def _drop(columns: Sequence[Column], width: int) -> tuple[list[Column], list[Column]]:
    """Return the columns that fit when all are shortened, and those that had to be dropped."""
    remaining = list(columns)
    droppable = sorted(
        (column for column in columns if column.rank is not None),
        key=lambda column: column.rank or 0,
    )
    for column in droppable:
        if _total([column.least for column in remaining]) <= width:
            break
        remaining.remove(column)
    return remaining, [column for column in columns if column not in remaining]


_LEGIBLE = 4
"""Columns that a name or a number needs to say anything."""


def _shrink(columns: Sequence[Column], width: int) -> list[int]:
    """Return widths that fit: the widest column gives way first, one at a time, to its floor.

    The last resort goes below the floors, down to 1; the last column, a verdict, gives way last.
    """
    widths = [column.width for column in columns]
    floors = [column.least for column in columns]
    while _total(widths) > width and widths != floors:
        above_floor = [i for i, floor in enumerate(floors) if widths[i] > floor]
        widths[max(above_floor, key=widths.__getitem__)] -= 1
    while _total(widths) > width and max(widths) > 1:
        others = widths[:-1]
        yielding = others if others and max(others) > _LEGIBLE else widths
        widths[widths.index(max(yielding))] -= 1
    return widths


def _row(texts: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> tuple[str, ...]:
    cells = [
        pad(shorten(text, width), width, right=column.right)
        for text, column, width in zip(texts, columns, widths, strict=True)
    ]
    return (*(cell + " " * GAP for cell in cells[:-1]), cells[-1].rstrip())


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def char_width(char: str) -> int:
    """Return the columns that a character takes in a terminal: 0, 1 or 2."""
    if unicodedata.category(char) in {"Mn", "Me", "Cf", "Cc", "Zl", "Zp"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


def display_width(text: str) -> int:
    """Return the columns that `text` takes in a terminal."""
    return len(text) if text.isascii() else sum(map(char_width, text))


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Return `text` with blanks to `width` columns, on the left if `right` aligned."""
    blanks = " " * max(0, width - display_width(text))
    return blanks + text if right else text + blanks


def shorten(text: str, width: int) -> str:
    """Return `text` in at most `width` columns.

    The middle is left out, for both ends of a test id tell tests apart.
    """
    if display_width(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    tail = take(text[::-1], (width - 1) // 2)[::-1]
    return take(text, width - 1 - display_width(tail)) + "…" + tail


def telling_width(cells: Iterable[str], least: int, most: int) -> int:
    """Return the smallest width from `least` to `most` at which different cells stay different.

    They are shortened to that width; where none is enough it is `most`.
    """
    different = set(cells)
    widths = range(least, max(least, most) + 1)
    for width in widths:
        if len({shorten(cell, width) for cell in different}) == len(different):
            return width
    return widths[-1]


def without_file(test: str) -> str:
    """Return a test id without its file: 'test_a.py::TestB::test_c' is 'TestB::test_c'."""
    return test.partition("::")[2] or test


def take(text: str, width: int) -> str:
    """Return the longest start of `text` that takes at most `width` columns."""
    used = 0
    for i, char in enumerate(text):
        used += char_width(char)
        if used > width:
            return text[:i]
    return text


def wrap(text: str, width: int, indent: str = "  ", first: str = "") -> list[str]:
    """Return `text` broken at blanks into lines of at most `width` columns.

    The first line begins with `first`, the others with `indent`. A number stays with its unit. Only
    a word longer than a line (a path, a test id) is cut.
    """
    lines: list[str] = []
    line = first
    for word in _words(text, max(1, width - max(len(indent), len(first)))):
        joined = f"{line} {word}" if line.strip() else line + word
        if display_width(joined) > width and line.strip():
            lines.append(line)
            joined = indent + word
        line = joined
    return [inert(complete.replace(_NO_BREAK, " ")) for complete in (*lines, line)]


def _words(text: str, width: int) -> list[str]:
    words: list[str] = []
    for word in _QUANTITY.sub(_NO_BREAK, text).split(" "):
        rest = word
        while display_width(rest) > width:
            start = take(rest, width) or rest[:1]
            words.append(start)
            rest = rest[len(start) :]
        words.append(rest)
    return [word for word in words if word]


def showable(text: str, encoding: str | None) -> str:
    """Return `text` as one line for a terminal of this encoding.

    Control characters are escaped, workflow commands are broken up, and our signs are in ASCII
    where the encoding lacks them. The mark of a shortened text keeps its width, so that a table may
    be laid out first.
    """
    line = inert("".join(map(_printable, text)))
    try:
        line.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        plain = line.translate(_PLAIN)
        return plain.encode("ascii", "backslashreplace").decode("ascii")
    return line


def _printable(char: str) -> str:
    if char.isprintable() or char == " ":
        return char
    return char.encode("unicode_escape").decode("ascii")
