"""GitHub's workflow commands: an annotation on a line of the code. Pure.

A command is one line `::error file=…,line=…,title=…::message`. In the message %, CR and LF are
escaped; in a property also the two signs that separate properties (github.com/actions/toolkit,
packages/core/src/command.ts).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_llmperf.report.problems import Problem
from pytest_llmperf.report.table import shorten, showable

SUMMARY_BYTES = 1_000_000
"""Limit of a job's page: GitHub drops all of a page of more than 1 MiB a step."""

MOST = 10
"""Annotations of each level that GitHub shows of a step."""

_TITLE_LENGTH = 200
_MESSAGE_LENGTH = 4000


def commands(problems: Iterable[Problem]) -> list[str]:
    """Return one line a problem, errors first.

    What GitHub would not show is counted in the last one of its level.
    """
    problems = list(problems)
    return _of_level("error", problems) + _of_level("warning", problems)


def _of_level(level: str, problems: Iterable[Problem]) -> list[str]:
    return _annotations([problem for problem in problems if problem.level == level])


def _annotations(problems: Sequence[Problem]) -> list[str]:
    if len(problems) <= MOST:
        return list(map(annotation, problems))
    annotated, left_out = problems[: MOST - 1], problems[MOST - 1 :]
    names = ", ".join(problem.test for problem in left_out)
    text = _data(f"{len(left_out)} more: {names}")
    return [*map(annotation, annotated), f"::{left_out[0].level} title=llmperf::{text}"]


def annotation(problem: Problem) -> str:
    """Return the workflow command of a problem."""
    title = shorten(f"{problem.outcome} {problem.test}", _TITLE_LENGTH)
    location = f"file={_property(problem.path)},line={problem.line}," if problem.path else ""
    return f"::{problem.level} {location}title={_property(title)}::{_data(problem.text)}"


def _data(text: str) -> str:
    printable = "\n".join(showable(line, "utf-8") for line in text.splitlines())
    if len(printable) > _MESSAGE_LENGTH:
        printable = f"{printable[:_MESSAGE_LENGTH]}…"
    return printable.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text.replace("\n", " ")).replace(":", "%3A").replace(",", "%2C")
