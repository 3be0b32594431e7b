"""`llmperf compare` of two servers: the test that it writes, and what pytest is asked for."""

from __future__ import annotations

import ast
import subprocess

import pytest
from click.testing import CliRunner

from pytest_llmperf.commands.compare import compare_command
from pytest_llmperf.commands.servers.comparing import FOLDER, are_servers
from pytest_llmperf.errors import UsageError


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The commands that were run; each ends with exit code 1."""
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_two_servers_are_measured_side_by_side_now(asked, tmp_path):
    """A is the base. Limits and the store go to pytest, whose exit code is the command's."""
    arguments = ["http://a:1", 'image:x:"2', "--model", "/m", "--engine", "server:vllm"]
    more = ["--name", "n", "--metric", "throughput:5%", "--store", "none"]
    result = CliRunner().invoke(compare_command, [*arguments, *more])
    assert result.exit_code == 1
    (command,) = asked
    assert {"--llmperf-against=http://a:1", '--llmperf-server=image:x:"2'} <= set(command)
    assert {"--llmperf-against-limits=throughput:5%", "--llmperf-store=none"} <= set(command)
    text = (tmp_path / FOLDER / "test_two_servers.py").read_text()
    ast.parse(text)
    assert "model='/m', engine='server:vllm', options={'name': 'n'}" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http://a:1", "http://b:1"], "name it by --model"),
        (["http://a:1", "base"], "'base' is not a server"),
        (["http://a:1", "image: ", "--model", "m"], "names no server"),
    ],
)
def test_what_cannot_be_compared_is_refused(asked, arguments, words):
    """Nothing is run."""
    with pytest.raises(UsageError, match=words):
        CliRunner().invoke(compare_command, arguments, catch_exceptions=False)
    assert not asked


def test_records_are_still_records():
    """Two names of records are no servers."""
    assert not are_servers("base", "0123abcd")
