"""GitHub's annotations, read as its runner reads a line of the log."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from support.hostile import ANY, HOSTILE

from pytest_llmperf.report.github import MOST, annotation, commands
from pytest_llmperf.report.problems import Problem


def read(line):
    """Return a workflow command, by the rules of the runner; None: it is no command.

    (github.com/actions/runner, Runner.Common/ActionCommand.cs)

    The line, blanks before it apart, begins with '::'; up to the next '::' stand the command and
    its properties, which ',' separates from each other and the first '=' from their values. Then
    both are unescaped.
    """
    if not line.lstrip().startswith("::"):
        return None
    head, separator, message = line.lstrip()[2:].partition("::")
    if not separator:
        return None
    command, _, rest = head.partition(" ")
    pairs = (each.partition("=") for each in rest.split(",") if each.strip())
    return (
        command,
        {name.strip(): unescape(text, "%3A%2C") for name, _, text in pairs},
        unescape(message),
    )


def unescape(text, more=""):
    signs = {"%0D": "\r", "%0A": "\n", "%25": "%", **({"%3A": ":", "%2C": ","} if more else {})}
    return re.sub("%(?:0D|0A|25|3A|2C)", lambda found: signs.get(found[0], found[0]), text)


def problem(**changes):
    values = {
        "test": "tests/test_it.py::test_x[a,b]",
        "outcome": "FAIL",
        "path": "tests/test_it.py",
        "line": 12,
    }
    return Problem(**{**values, "text": "100 % slower: 5 tok/s\nsecond line", **changes})


def test_an_annotation_names_file_line_test_and_reason():
    """All of it comes back as it was."""
    assert read(annotation(problem())) == (
        "error",
        {"file": "tests/test_it.py", "line": "12", "title": "FAIL tests/test_it.py::test_x[a,b]"},
        "100 % slower: 5 tok/s\nsecond line",
    )


def test_what_has_no_file_has_no_place():
    """GitHub shows it with the job."""
    of_session = Problem(test="the session", outcome="FAIL", text="judged nothing")
    assert read(annotation(of_session)) == (
        "error",
        {"title": "FAIL the session"},
        "judged nothing",
    )


@settings(deadline=None)
@given(ANY, ANY, ANY)
def test_any_text_is_one_command_with_three_properties(test, path, text):
    """One line; nothing that a name or a reason says becomes a property or a second command."""
    line = annotation(problem(test=test, path=path or "x", text=text))
    assert len(line.splitlines()) == 1
    assert not any(sign in line for sign in "\x00\x1b\u202e\u2028")
    command, properties, _ = read(line)
    assert (command, set(properties)) == ("error", {"file", "line", "title"})
    assert properties["line"] == "12"


@pytest.mark.parametrize(
    "name", [name for name in HOSTILE if "\n" in name or "," in name or "::" in name]
)
def test_the_same_text_as_it_is_would_be_something_else(name):
    """Negative control: unescaped it is several lines, or other properties."""
    raw = f"::error file=tests/test_it.py,line=12,title=FAIL {name}::{name}"
    found = read(raw)
    assert (
        len(raw.splitlines()) > 1
        or found is None
        or found[1].get("title") != f"FAIL {name}"
        or found[2] != name
    )


def test_only_as_many_as_github_shows_and_the_rest_in_one():
    """Errors first; those without a place of their own are named."""
    found = [
        problem(test=f"t{i}", outcome="UNDECIDED" if i % 2 else "ERROR")
        for i in range(2 * MOST + 4)
    ]
    lines = [read(line) for line in commands(found)]
    assert [level for level, _, _ in lines] == ["error"] * MOST + ["warning"] * MOST
    assert lines[MOST - 1][2] == "3 more: t18, t20, t22"
    assert commands([]) == []
