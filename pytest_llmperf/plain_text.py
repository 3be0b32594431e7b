"""Text of others (servers, workers, logs, prompts) as a terminal and a CI system may get it.

It moves no cursor, sets no colour, and starts no workflow command: GitHub takes a line that starts
with `::name` for one, Azure and older runners of GitHub take `##vso[` and `##[` anywhere, TeamCity
takes `##teamcity[`, and Buildkite and GitLab read terminal sequences.
"""

from __future__ import annotations

import re

from pytest_llmperf.secrets import masked

LONGEST = 100_000
"""Characters of a message; the middle of a longer one is left out."""

_COMMAND = re.compile(r"(?<!\S):(?=:[a-zA-Z])|#(?=#[a-zA-Z]{0,16}\[)")
_INERT = {":": ": ", "#": "# "}


def shown(text: str) -> str:
    """Return a message of several lines as it may be shown: masked, bounded, inert, printable."""
    bounded = shortened(masked(shortened(text, 4 * LONGEST)), LONGEST)
    return inert("\n".join(map(printable, bounded.replace("\r\n", "\n").split("\n"))))


def shortened(text: str, longest: int) -> str:
    """Return the text without its middle where it is longer than so many characters."""
    if len(text) <= longest:
        return text
    n_end = longest // 4
    n_start = longest - n_end
    left_out = len(text) - longest
    return f"{text[:n_start]} … [{left_out} characters were left out] … {text[-n_end:]}"


def printable(line: str) -> str:
    """Return a line with each character that is none of a text (but tabs) as its escape."""
    if line.isprintable():
        return line
    return "".join(map(_printable, line))


def inert(text: str) -> str:
    """Return the text with a space in each mark that would start a workflow command."""
    return _COMMAND.sub(lambda match: _INERT[match[0]], text)


def _printable(char: str) -> str:
    if char.isprintable() or char in " \t":
        return char
    return char.encode("unicode_escape").decode("ascii")
