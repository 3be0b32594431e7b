"""The check of the schema that runs after every test of this folder sees what it should."""

from __future__ import annotations

import json

import pytest
from jsonschema_rs import ValidationError
from support.written_records import VALIDATOR, written


def test_what_a_session_writes_is_seen_and_a_wrong_record_fails(project, run, pytester):
    """Lines of the file and documents of the store; one that lacks its strategy is refused."""
    project("def test_speed(llm):\n    assert llm.run(WORK).throughput >= 1\n")
    run("--llmperf-json=out.jsonl").assert_outcomes(passed=1)
    found = written(pytester.path)
    assert len(found) == 2  # one line of the file, and the one of the store
    spoilt = json.loads(found[0])
    del spoilt["strategy"]
    with pytest.raises(ValidationError, match='"strategy" is a required property'):
        VALIDATOR.validate(spoilt)
