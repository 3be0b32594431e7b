"""The tables of the reference pages that are made from the code.

`python tests/docs/reference_tables.py` writes them anew.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from pytest_llmperf import names
from pytest_llmperf.settings.options import OPTIONS, Option

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
MARKERS = (names.MARKER, names.GPUS_MARKER, names.ISOLATED_MARKER, names.RANKS_MARKER)


def tables() -> dict[str, dict[str, str]]:
    """Page -> name of a table -> its text."""
    return {
        "options.md": {"options": _options()},
        "markers-and-fixtures.md": {"markers": _markers(), "fixtures": _fixtures()},
    }


def written(page: str, made: dict[str, str]) -> str:
    """The page with each of its tables as it is made now."""
    for name, text in made.items():
        begin, end = f"<!-- made: {name} -->\n", "<!-- end -->"
        head, found, rest = page.partition(begin)
        if not found:
            raise ValueError(f"the page has no line {begin!r}")
        page = f"{head}{begin}\n{text}\n\n{end}{rest.partition(end)[2]}"
    return page


def _cell(text: str) -> str:
    return text.replace("%%", "%").replace("|", "\\|")


def _options() -> str:
    head = "| option | default | in the ini file | meaning |\n| --- | --- | --- | --- |"
    return "\n".join([head, *(_option(option) for option in OPTIONS)])


def _option(option: Option) -> str:
    value = "" if option.flag else f"[={option.metavar}]" if option.bare else f" {option.metavar}"
    default = "" if option.flag or not option.default else f"`{_cell(option.default)}`"
    ini = {"bool": "yes or no", "linelist": "one a line", "string": "text"}[option.ini_type]
    return f"| `{option.flag_name}{_cell(value)}` | {default} | {ini} | {_cell(option.help)} |"


def _markers() -> str:
    return "\n\n".join(_marker(text) for text in MARKERS)


def _marker(text: str) -> str:
    signature, _, meaning = text.partition("): ")
    shown = textwrap.fill(
        f"@pytest.mark.{signature})", 88, subsequent_indent="    ", break_long_words=False
    )
    name = signature.partition("(")[0]
    return f"### {name}\n\n```text\n{shown}\n```\n\n{meaning[0].upper()}{meaning[1:]}"


def _fixtures() -> str:
    head = "| fixture | strategy or engine |\n| --- | --- |"
    made = names.STRATEGY_FIXTURES | names.ENGINE_FIXTURES
    return "\n".join([head, *(f"| `{name}` | `{what}` |" for name, what in made.items())])


def main() -> None:
    """Write the tables into their pages."""
    for name, made in tables().items():
        path = REFERENCE / name
        path.write_text(
            re.sub(r"\n{3,}", "\n\n", written(path.read_text(encoding="utf-8"), made)),
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
