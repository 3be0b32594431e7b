"""--llmperf-server and --llmperf-against with servers: real stubs, one process a block."""

from __future__ import annotations

import json
import os

import pytest
from support.stubs import stub_command, write_model

pytestmark = pytest.mark.workers

nightly = pytest.mark.skipif(
    "LLMPERF_NIGHTLY" not in os.environ, reason="a minute of started servers: make nightly runs it"
)
PROJECT = """
import pytest
from pytest_llmperf import Decode

OPTIONS = {{"command": {command!r}, "name": "tiny"}}

@pytest.mark.llmperf(model={model!r}, engine="server", options=OPTIONS)
def test_speed(llm):
    llm.run(Decode(batch=1, prompt_tokens=8, new_tokens=17))
"""
RUN = ("--llmperf-allow-load", "--llmperf-budget=1", "--llmperf-json=out.jsonl")


@pytest.fixture
def served(pytester):
    """Writes a test of a stub with 5 ms a token."""
    model = write_model(pytester.path)
    command = stub_command("--token-ms 5")
    pytester.makepyfile(test_it=PROJECT.format(model=str(model), command=command))


def against(pytester):
    """What the record keeps of the comparison."""
    lines = (pytester.path / "out.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["extra"]["against"]


@nightly
@pytest.mark.usefixtures("served")
def test_a_slower_server_fails_against_the_base(pytester, run):
    """Another command, started and ended by turns; the answers of both are compared."""
    base = stub_command("--token-ms 4")
    result = run(*RUN, "--llmperf-processes=1", f"--llmperf-against=command:{base}")
    result.assert_outcomes(failed=1)
    kept = against(pytester)
    assert (kept["kind"], kept["metrics"]["throughput"]["outcome"]) == ("server", "FAIL")
    assert kept["metrics"]["throughput"]["processes"]["fresh"] is True
    assert kept["answers"]["equal"] == kept["answers"]["prompts"] > 0
    assert "answers are the same text" in result.stdout.str()


@nightly
@pytest.mark.usefixtures("served")
def test_the_option_puts_every_test_on_another_server(pytester, run):
    """A preset's or a test's own server is not started."""
    run(*RUN, f"--llmperf-server=command:{stub_command('--token-ms 1')}").assert_outcomes(passed=1)
    record = json.loads((pytester.path / "out.jsonl").read_text().splitlines()[-1])
    assert "--token-ms 1" in record["effective"]["notes"][0]
