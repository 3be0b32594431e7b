"""Text of others moves no cursor, starts no workflow command, and is bounded."""

from __future__ import annotations

import re
import time

import pytest
from support.hostile import HOSTILE

from pytest_llmperf import errors
from pytest_llmperf.gate.gate import Regression
from pytest_llmperf.plain_text import LONGEST, inert, shown
from pytest_llmperf.plugin.reporting import LlmperfWarning
from pytest_llmperf.report.table import showable, wrap
from pytest_llmperf.secrets import masked

COMMANDS = (
    "::set-output name=x::y",
    "  ::add-mask::x",
    "a\n::error file=a::b",
    "a\r::error::b",
    "word ::error::b",
    "a ##vso[task.setvariable variable=x]y",
    "##[add-path]x",
    "##teamcity[buildStop]",
)
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def starts_a_command(text: str) -> bool:
    """Whether a runner would take a line of the text for a command.

    GitHub ends lines at a CR as well and trims them; `##` counts anywhere.
    """
    lines = re.split(r"[\r\n]", text)
    return any(re.match(r"\s*::[a-zA-Z]", line) or re.search(r"##\w*\[", line) for line in lines)


@pytest.mark.parametrize("text", [*HOSTILE, *COMMANDS])
@pytest.mark.parametrize("kind", [errors.WorkerError, Regression, LlmperfWarning])
def test_no_message_of_ours_controls_a_terminal_or_a_runner(kind, text):
    message = str(kind(text))
    assert not CONTROLS.search(message)
    assert not starts_a_command(message)


@pytest.mark.parametrize("text", COMMANDS)
def test_a_line_of_the_summary_starts_no_command_wherever_it_is_wrapped(text):
    lines = wrap(showable(text, "utf-8"), 12, "  ", "")
    assert not starts_a_command("\n".join(lines))


@pytest.mark.parametrize("text", COMMANDS)
def test_the_check_sees_a_command(text):
    """The checks above can fail."""
    assert starts_a_command(text) or starts_a_command("\n".join(text.split(" ")))


@pytest.mark.parametrize(
    "text", ["tests/a.py::test_x[::1]", "std::vector", "http://[::1]:80", "## heading", "a\tb\nc"]
)
def test_ordinary_text_stays(text):
    assert shown(text) == text


def test_a_note_is_shown_alike():
    error = errors.WorkerDied("x")
    error.add_note("\x1b[31m --api-key c4n4ryS3cret\n::error::x")
    (note,) = error.__notes__
    assert note == "\\x1b[31m --api-key ***\n: :error::x"


def test_a_long_message_is_bounded():
    message = str(errors.WorkerError("a" * 10_000_000 + "the end"))
    assert len(message) < LONGEST + 100
    assert message.endswith("the end")


@pytest.mark.parametrize("piece", ["a-", "-", "://a:", "token", "--", "password=", ":", "#", "_"])
def test_no_text_takes_long(piece):
    """A pattern that goes back and forth over 400,000 characters takes minutes."""
    start_s = time.process_time()
    inert(masked(piece * (400_000 // len(piece))))
    assert time.process_time() - start_s < 10
