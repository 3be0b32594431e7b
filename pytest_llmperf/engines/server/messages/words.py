"""The words of a server as they may be shown: one line, no control characters, no secrets."""

from __future__ import annotations

from pytest_llmperf.plain_text import inert
from pytest_llmperf.secrets import masked


def shown(text: str, limit: int) -> str:
    """Return the first `limit` characters of a text in one line.

    What is not printable (the escapes of a terminal) becomes U+FFFD.
    """
    line = inert(" ".join(masked(text[: 4 * limit]).split()))
    return "".join(char if char.isprintable() else "\ufffd" for char in line)[:limit]
