"""`llmperf record N`: the sessions that a gate holds others against, in one go."""

from __future__ import annotations

from pathlib import Path

import click

from pytest_llmperf.commands.shared import example


@click.command(
    "record",
    short_help="Record several sessions for a gate in one go.",
    context_settings={"ignore_unknown_options": True},
    epilog=example("llmperf record 8 -- tests/test_speed.py"),
)
@click.argument("sessions", metavar="N", type=click.IntRange(min=1))
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- PYTEST ARGS]")
def record_command(sessions: int, pytest_args: tuple[str, ...]) -> None:
    """Run the llmperf tests N times, each time in a fresh pytest session.

    The gate needs eight sessions to hold the next against. The exit code is that of the first
    session that does not pass, and 0 if all do. `pytest --llmperf-record=N` does the same.
    """
    from pytest_llmperf.plugin.recording import record_sessions  # noqa: PLC0415

    arguments = ["--llmperf-only", *pytest_args]
    raise SystemExit(record_sessions(sessions, arguments, Path.cwd(), click.echo))
