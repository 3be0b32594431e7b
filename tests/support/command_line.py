"""The `llmperf` command, called in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from pytest_llmperf.commands import cli


def llmperf(*arguments: str, code: int = 0) -> Result:
    """Run a command, which must end with this exit code."""
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return result
