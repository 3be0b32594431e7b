"""`llmperf schema`: the JSON Schema of a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pytest_llmperf.commands.shared import as_text, example
from pytest_llmperf.errors import StoreError, UsageError


@click.command(
    "schema", short_help="Print the JSON Schema of a record.", epilog=example("llmperf schema")
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write it to this file."
)
def schema_command(out: Path | None) -> None:
    """Print the JSON Schema of a record, as the store keeps it.

    It is a line of --llmperf-json and of 'llmperf export'. A file that holds another schema of the
    same version is not overwritten where that would break what was written by it.
    """
    from pytest_llmperf.core.record_schema import record_schema  # noqa: PLC0415

    schema = record_schema()
    if out is None:
        click.echo(as_text(schema))
        return
    _require_same_version(out, schema)
    _write(out, as_text(schema) + "\n")
    click.echo(f"{schema['$id']} written to {out}")


def _write(out: Path, text: str) -> None:
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{out} cannot be written: {error}. Give another --out.") from error


def _require_same_version(out: Path, schema: dict[str, Any]) -> None:
    from msgspec import DecodeError, json  # noqa: PLC0415

    from pytest_llmperf.core.record_schema import broken  # noqa: PLC0415

    if not out.is_file():
        return
    try:
        old = json.decode(out.read_bytes())
        changed = broken(old, schema)
    except (DecodeError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{out} is not a schema of a record. Give another --out, or remove it first."
        ) from error
    if old.get("$id") == schema["$id"] and changed:
        raise UsageError(
            f"{out} holds another schema of the same version: {'; '.join(changed)}. "
            "Raise SCHEMA_VERSION in core/record.py, and add to UPGRADES in core/record_json.py "
            "what reads the older one."
        )
