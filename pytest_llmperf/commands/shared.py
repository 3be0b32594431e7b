"""What the commands share: the project's history, tables and JSON on standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_llmperf.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from pytest_llmperf.history.store import Store
    from pytest_llmperf.settings.project import Project

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on standard output."
)
store_option = click.option(
    "--store",
    metavar="URL",
    help="History store. Default: the project's `llmperf_store`, "
    "else sqlite:///.llmperf/history.db.",
)


def example(*lines: str) -> str:
    """The end of a command's help: command lines that work as they are. A test runs each."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


def open_history(url: str | None) -> Store:
    """The store of --store, or the project's. Raises StoreMissing where there is none yet."""
    from pytest_llmperf.history.store import open_store  # noqa: PLC0415

    address, folder = store_url(url)
    return open_store(address, create=False, folder=folder)


def require_metric(store: Store, metric: str | None) -> None:
    """Raise UsageError for a metric that the newest records do not have.

    An empty store has nothing to say.
    """
    if metric is None:
        return
    known = store.metric_names()
    if known and metric not in known:
        raise UsageError(_no_such_metric(metric, known))


def _no_such_metric(metric: str, known: Sequence[str]) -> str:
    near = did_you_mean(metric, known, otherwise=f"Metrics: {', '.join(known)}.")
    return f"metric {metric!r} is not in the newest records.{near}"


def require_known(parts: Sequence[str], store: Store) -> None:
    """Raise UsageError for a part that is in no test's name."""
    tests = store.tests() if parts else ()
    for part in parts:
        _require_in_a_name(part, tests, store.public_url)


def _require_in_a_name(part: str, tests: Sequence[str], store_name: str) -> None:
    if not any(part in test for test in tests):
        raise UsageError(_no_such_test(part, tests, store_name))


def _no_such_test(part: str, tests: Sequence[str], store_name: str) -> str:
    return f"no test in {store_name} has {part!r} in its name.{did_you_mean(part, tests)}"


def store_url(url: str | None) -> tuple[str, Path]:
    """The store, and the folder that its relative path starts from.

    That is the working directory for an option, else the project's root.
    """
    return _project_store() if url is None else (url, Path.cwd())


def _project_store() -> tuple[str, Path]:
    from pytest_llmperf.settings.options import DEFAULT_STORE  # noqa: PLC0415

    project = _project()
    if project.store == "none":
        raise _keeps_no_history(project.root)
    return project.store or DEFAULT_STORE, project.root


def _keeps_no_history(root: Path) -> UsageError:
    return UsageError(
        f"the project at {root} keeps no history (llmperf_store = none). "
        "Name a store with --store URL."
    )


def project_root() -> Path:
    """The root of the project that the working directory is in."""
    return _project().root


def _project() -> Project:
    from pytest_llmperf.settings.project import find_project  # noqa: PLC0415

    return find_project(Path.cwd())


def user_name() -> str:
    """The user's name here."""
    import getpass  # noqa: PLC0415

    return getpass.getuser()


def now() -> str:
    """UTC, ISO 8601, to the second."""
    from datetime import UTC, datetime  # noqa: PLC0415

    return datetime.now(UTC).isoformat(timespec="seconds")


def print_table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> None:
    """Print a table as plain text, one line a row, its columns aligned. Nothing is cut."""
    from pytest_llmperf.report.table import display_width, pad  # noqa: PLC0415

    lines = [tuple(map(encodable, cells)) for cells in (header, *rows)]
    widths = [max(map(display_width, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        padded = (pad(cell, width) for cell, width in zip(cells, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def encodable(text: str) -> str:
    """The text in characters that standard output can show."""
    from pytest_llmperf.report.table import showable  # noqa: PLC0415

    return showable(text, sys.stdout.encoding)


def print_json(document: dict[str, Any]) -> None:
    """The document on standard output, indented."""
    click.echo(as_text(document))


def as_text(document: dict[str, Any]) -> str:
    """Indented JSON. NaN and infinity are the texts that records have in their place."""
    from msgspec import json  # noqa: PLC0415

    from pytest_llmperf.core import record_json  # noqa: PLC0415

    return json.format(record_json.encode(document), indent=2).decode("utf-8")
