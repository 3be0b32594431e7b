"""A hook of mkdocs for pipes in code spans of tables.

They are escaped for GitHub, and must not be for Python-Markdown.
"""

from __future__ import annotations

import re
from typing import Any

_CODE = re.compile(r"`[^`]*`")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with plain pipes in the code spans of its table rows."""
    return "\n".join(_row(line) if line.startswith("|") else line for line in markdown.split("\n"))


def _row(line: str) -> str:
    return _CODE.sub(lambda code: code[0].replace("\\|", "|"), line)
