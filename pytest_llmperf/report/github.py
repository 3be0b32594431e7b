"""GitHub's workflow commands: an annotation on a line of the code. Pure.

A command is one line `::error file=…,line=…,title=…::message`. In the message %, CR and LF are
escaped; in a property also the two signs that separate properties (github.com/actions/toolkit,
packages/core/src/command.ts).
"""

from __future__ import annotations

from collections.abc import Iterable

from pytest_llmperf.report.problems import Problem
from pytest_llmperf.report.table import shorten, showable

SUMMARY_BYTES = 1_000_000
"""Of a job's page, which GitHub limits to 1 MiB a step; it drops all of a larger one."""

MOST = 10
"""Annotations of each level that GitHub shows of a step."""

_TITLE_LENGTH = 200
_MESSAGE_LENGTH = 4000


def commands(problems: Iterable[Problem]) -> list[str]:
    """One line a problem, errors first.

    What GitHub would not show is counted in the last one of its level.
    """
    found = list(problems)
    lines = []
    for level in ("error", "warning"):
        of_level = [each for each in found if each.level == level]
        kept = of_level if len(of_level) <= MOST else of_level[: MOST - 1]
        lines += [annotation(each) for each in kept]
        if left_out := of_level[len(kept) :]:
            names = ", ".join(each.test for each in left_out)
            lines.append(f"::{level} title=llmperf::{_data(f'{len(left_out)} more: {names}')}")
    return lines


def annotation(problem: Problem) -> str:
    """The workflow command of a problem."""
    title = shorten(f"{problem.outcome} {problem.test}", _TITLE_LENGTH)
    where = f"file={_property(problem.path)},line={problem.line}," if problem.path else ""
    return f"::{problem.level} {where}title={_property(title)}::{_data(problem.text)}"


def _data(text: str) -> str:
    shown = "\n".join(showable(line, "utf-8") for line in text.splitlines())
    cut = shown if len(shown) <= _MESSAGE_LENGTH else f"{shown[:_MESSAGE_LENGTH]}…"
    return cut.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text.replace("\n", " ")).replace(":", "%3A").replace(",", "%2C")
