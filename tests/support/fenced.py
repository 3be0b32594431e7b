"""The fenced blocks of the pages, with the comment that stands before each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOT_RUN = frozenset(
    {
        "fragment",
        "needs a GPU",
        "needs a network",
        "needs files of your own",
        "needs a program that is not installed",
    },
)
_FENCE = re.compile(
    r"(?:^<!-- ([^\n]*) -->\n)?^( *)```(\w*)([^\n]*)\n(.*?)^\2```$", re.DOTALL | re.MULTILINE
)
_COMMAND = re.compile(
    r"(?:^|[;&|]|\bdo )\s*((?:[A-Z_]+=\S+ )*)(pytest|llmperf) ?((?:\"[^\"]*\"|'[^']*'|[^;&|\"'])*)"
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block: of which page, at which line, in which language, after which comment."""

    page: str
    line: int
    comment: str
    language: str
    info: str
    text: str

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def not_run(self) -> str | None:
        """Why a block is not run, or None."""
        return (
            self.comment.removeprefix("not run: ") if self.comment.startswith("not run: ") else None
        )


def blocks_of(text: str, page: str) -> list[Block]:
    """Every fenced block of a page."""
    return [
        Block(
            page=page,
            line=text[: fence.start()].count("\n") + 1,
            comment=fence[1] or "",
            language=fence[3],
            info=fence[4],
            text=fence[5],
        )
        for fence in _FENCE.finditer(text)
    ]


def all_blocks() -> list[Block]:
    """Those of every page that says how to do something.

    What docs/results/ shows is what was run when the page was made.
    """
    pages = [
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "example_suites").rglob("*.md")),
    ]
    how_to_pages = [page for page in pages if "results" not in page.relative_to(ROOT).parts]
    return [
        block
        for page in how_to_pages
        for block in blocks_of(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))
    ]


def commands(block: Block) -> list[tuple[str, str]]:
    """Return every command line of a console block that calls pytest or llmperf.

    Each is the program, and its words as one text.
    """
    lines = [line[2:].split("  #")[0] for line in block.text.splitlines() if line.startswith("$ ")]
    return [
        (command[2], command[3].strip()) for line in lines for command in _COMMAND.finditer(line)
    ]
