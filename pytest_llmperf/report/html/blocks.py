"""What a page is built of: sections of parts of blocks.

Each kind of block is one macro of the template. Values only.
"""

from __future__ import annotations

from typing import Any, ClassVar

from msgspec import Struct


class Cell(Struct, frozen=True):
    """A cell of a table.

    `sub` is a second, quieter line; `tone` is "", "bad", "warn", "good", "accent" or "quiet".
    """

    text: str
    sub: str = ""
    tone: str = ""


class Row(Struct, frozen=True, kw_only=True):
    """A row.

    Filters look at `words` and `outcome`; `run` is the id of the record whose samples it offers to
    download. Links lead to the row that has an `anchor`, which no other row has.
    """

    cells: tuple[Cell, ...]
    words: str = ""
    outcome: str = ""
    run: str = ""
    anchor: str = ""


class Table(Struct, frozen=True, kw_only=True):
    """A table. Columns from `first_number` on are numbers (None: none). `note` is shown below."""

    kind: ClassVar[str] = "table"
    caption: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    first_number: int | None = None
    note: str = ""


class Figure(Struct, frozen=True, kw_only=True):
    """A chart: `chart` names its function in report.js, which gets `data`.

    `alt` says what a person sees in it.
    """

    kind: ClassVar[str] = "figure"
    chart: str
    title: str
    alt: str
    data: dict[str, Any]
    note: str = ""


class Note(Struct, frozen=True):
    """A sentence. `tone` as in Cell."""

    kind: ClassVar[str] = "note"
    text: str
    tone: str = ""


class Token(Struct, frozen=True):
    """One position of a continuation.

    `kl` is in nats (None: not finite), `same` says whether both argmax are equal, `parts` whether
    the texts part here.
    """

    kl: float | None
    same: bool
    heat: int
    parts: bool = False


class Prompt(Struct, frozen=True, kw_only=True):
    """A prompt that disagrees: its texts, its positions, both top-5 at the worst one."""

    kind: ClassVar[str] = "prompt"
    title: str
    text: str
    reference: str
    candidate: str
    tokens: tuple[Token, ...]
    worst: str
    top5: tuple[tuple[str, str, str, str], ...]


class Fold(Struct, frozen=True, kw_only=True):
    """Blocks behind a line that opens them."""

    kind: ClassVar[str] = "fold"
    summary: str
    blocks: tuple[Any, ...]


class Part(Struct, frozen=True, kw_only=True):
    """A titled piece of a section. Filters look at its `words` if it has any."""

    title: str
    blocks: tuple[Any, ...]
    lead: str = ""
    words: str = ""


class Section(Struct, frozen=True, kw_only=True):
    """A section of the page; `id` is its anchor."""

    id: str
    title: str
    parts: tuple[Part, ...]
    lead: str = ""


Block = Table | Figure | Note | Prompt | Fold
"""What a part consists of."""
