"""The words of a server, as they may be shown: in one line, without control characters."""

from __future__ import annotations


def shown(text: str, limit: int) -> str:
    """Return the first `limit` characters of a text in one line.

    What is not printable (the escapes of a terminal) becomes U+FFFD.
    """
    line = " ".join(text[: 4 * limit].split())
    return "".join(char if char.isprintable() else "\ufffd" for char in line)[:limit]
