"""GitLab's code-quality report, by the rules that GitLab validates it with."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from jsonschema_rs import Draft202012Validator
from support.hostile import ANY

from pytest_llmperf.report.gitlab import document
from pytest_llmperf.report.problems import Problem

SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["description", "check_name", "fingerprint", "severity", "location"],
        "properties": {
            "description": {"type": "string", "minLength": 1},
            "check_name": {"type": "string", "minLength": 1},
            "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{32,}$"},
            "severity": {"enum": ["info", "minor", "major", "critical", "blocker"]},
            "location": {
                "type": "object",
                "required": ["path", "lines"],
                "properties": {
                    "path": {"type": "string", "pattern": "^(?!\\./|/)"},
                    "lines": {
                        "type": "object",
                        "required": ["begin"],
                        "properties": {"begin": {"type": "integer", "minimum": 1}},
                    },
                },
            },
        },
    },
}
"""What docs.gitlab.com/ci/testing/code_quality says of the report, in our words.

It is stricter than the schema that GitLab validates with
(app/validators/json_schemas/codeclimate.json), which asks for no check_name and takes any severity.
That one is on no package index; npm's codeclimate-types are those of Code Climate's own issues,
whose type and categories GitLab ignores.
"""
VALIDATOR = Draft202012Validator(SCHEMA)


def problem(**changes):
    values = {
        "test": "tests/test_it.py::test_x",
        "outcome": "FAIL",
        "path": "tests/test_it.py",
        "line": 12,
        "text": "slower\nby far",
    }
    return Problem(**{**values, **changes})


@settings(deadline=None)
@given(ANY, ANY)
def test_any_problem_is_valid_and_one_line(test, text):
    """Whatever its name and reason."""
    found = json.loads(
        json.dumps(document([problem(test=test, text=text), problem(outcome="UNDECIDED", line=1)]))
    )
    VALIDATOR.validate(found)
    assert all(each["description"].isprintable() for each in found)
    assert len(found[0]["description"]) <= 2000


@pytest.mark.parametrize(
    "spoil",
    [
        lambda issue: issue.pop("fingerprint"),
        lambda issue: issue.update(severity="bad"),
        lambda issue: issue["location"].pop("lines"),
        lambda issue: issue["location"]["lines"].update(begin="12"),
        lambda issue: issue["location"].update(path="./tests/test_it.py"),
    ],
)
def test_what_gitlab_would_drop_is_not_valid(spoil):
    """Negative control."""
    found = document([problem()])
    assert VALIDATOR.is_valid(found)
    spoil(found[0])
    assert not VALIDATOR.is_valid(found)


def test_a_fingerprint_is_that_of_the_problem_and_not_of_its_line_or_numbers():
    """Otherwise each run would be a new finding in the merge request."""
    one, moved, other = document(
        [
            problem(),
            problem(line=99, text="slower by 2 %"),
            problem(test="tests/test_it.py::test_y"),
        ]
    )
    assert one["fingerprint"] == moved["fingerprint"] != other["fingerprint"]
    assert document([]) == []


@pytest.mark.parametrize(
    ("outcome", "severity"), [("FAIL", "major"), ("ERROR", "critical"), ("UNDECIDED", "minor")]
)
def test_the_severity_is_that_of_the_outcome(outcome, severity):
    """A regression is major, what could not be measured critical, the rest minor."""
    assert document([problem(outcome=outcome)])[0]["severity"] == severity
