"""The `llmperf` command. Each command loads what it needs when it runs: `--help` is quick."""

from __future__ import annotations

import errno
from typing import Any

import click

from pytest_llmperf.commands.accept import accept_command
from pytest_llmperf.commands.advise import advise_command
from pytest_llmperf.commands.audit import audit_command
from pytest_llmperf.commands.bisect import bisect_command
from pytest_llmperf.commands.calibrate import calibrate_command
from pytest_llmperf.commands.compare import compare_command
from pytest_llmperf.commands.completion import completion_option
from pytest_llmperf.commands.doctor import doctor_command
from pytest_llmperf.commands.history import history_command
from pytest_llmperf.commands.report import report_command
from pytest_llmperf.commands.schema import schema_command
from pytest_llmperf.commands.start.init import init_command
from pytest_llmperf.commands.start.record import record_command
from pytest_llmperf.commands.start.run import run_command
from pytest_llmperf.commands.transfer import export_command, import_command
from pytest_llmperf.errors import LlmperfError


class _Commands(click.Group):
    """Shows our own errors as one message and exit code 1, never as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LlmperfError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            raise click.ClickException(f"standard output cannot be written: {error}") from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pytest-llmperf", prog_name="llmperf")
@completion_option
def main() -> None:
    """Performance tests for LLM inference: what this machine can do, what earlier runs measured."""


for command in (
    accept_command,
    advise_command,
    audit_command,
    bisect_command,
    calibrate_command,
    compare_command,
    doctor_command,
    export_command,
    history_command,
    import_command,
    init_command,
    record_command,
    report_command,
    run_command,
    schema_command,
):
    main.add_command(command)
