"""`llmperf export` and `llmperf import`: a history as a file of JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_llmperf.commands.compare import print_changes
from pytest_llmperf.commands.shared import (
    encodable,
    example,
    json_option,
    open_history,
    print_json,
    project_root,
    require_known,
    store_option,
    store_url,
)

if TYPE_CHECKING:
    from pytest_llmperf.core.change import Change
    from pytest_llmperf.core.record import Record
    from pytest_llmperf.history.store import Store
    from pytest_llmperf.history.transfer import Imported

EXIT_SKIPPED = 3
"""Exit code of an import that left lines out. Everything else of its files was imported."""


@click.command(
    "export",
    short_help="The history as JSON lines.",
    epilog=example("llmperf export --out llmperf-history.jsonl"),
)
@click.argument("tests", nargs=-1, metavar="[TEST]…")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Append to this file what it does not have yet.",
)
@click.option("--series", metavar="KEY", help="Only the series with this key.")
@click.option("--since", metavar="TIME", help="Only records from this ISO 8601 time on.")
@store_option
@json_option
def export_command(
    tests: tuple[str, ...],
    out: Path | None,
    series: str | None,
    since: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """The history as JSON lines, on standard output or appended to a file.

    TEST is a node id or a part of one.

    One record a line, oldest first, then the project's accepted changes. A file is only ever
    appended to, so that it can be committed; with 'FILE merge=union' in .gitattributes two branches
    merge without conflict. --json is about --out.
    """
    from pytest_llmperf.history import accept, transfer  # noqa: PLC0415

    reviewed = accept.reviewed(project_root())
    with open_history(store) as opened:
        records = _selected(opened, tests, series, since)
        lines = transfer.export_lines(records, (*reviewed.accepted, *reviewed.renames))
        if out is None:
            sys.stdout.buffer.writelines(lines)
            return
        n = transfer.append_new(out, lines)
    _report_added(out, n, as_json=as_json)


def _report_added(out: Path, n: int, *, as_json: bool) -> None:
    if as_json:
        print_json({"file": str(out), "added": n})
    else:
        click.echo(f"{_lines(n)} added to {out}")


def _lines(n: int) -> str:
    return f"{n} line{'' if n == 1 else 's'}"


@click.command(
    "import",
    short_help="Add records, or other tools' results, to the history.",
    epilog=example("llmperf import llmperf-history.jsonl"),
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--label", default="", help="Label of other tools' results: a series of its own.")
@click.option(
    "--fact",
    "facts",
    multiple=True,
    metavar="NAME=VALUE",
    help="Where other tools' results were measured, as device_name=…. May be given again.",
)
@click.option(
    "--gate",
    metavar="METRIC:LIMIT,…",
    is_flag=False,
    flag_value="on",
    help="Hold other tools' results against those stored before; exit code 1 for a regression.",
)
@store_option
@json_option
def import_command(
    files: tuple[Path, ...],
    label: str,
    facts: tuple[str, ...],
    gate: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Add the records of JSON-lines files (of 'llmperf export' or --llmperf-json) to the history.

    Result files of vllm bench, SGLang's bench_serving, aiperf, guidellm, inference-perf,
    llama-bench and pytest-benchmark become records too, with those tools' own definitions.

    May be repeated.

    Exit code 3 if lines were skipped (half-written, in conflict, of another unit): each is named,
    all others are imported. A file of another tool is imported whole, or not at all.
    """
    from pytest_llmperf.commands.importing.foreign_files import (  # noqa: PLC0415
        read_files,
        store_records,
    )
    from pytest_llmperf.history.foreign import is_ours  # noqa: PLC0415
    from pytest_llmperf.history.store import open_store  # noqa: PLC0415

    own = [path for path in files if is_ours(path)]
    records = read_files((path for path in files if path not in own), label, facts)
    limits = _limits(gate)
    url, folder = store_url(store)
    with open_store(url, folder=folder) as opened:
        imported = [_import(opened, path) for path in own]
        foreign, changes = store_records(opened, records, limits)
        _report_imported(opened.public_url, [*imported, foreign], changes, as_json=as_json)
    if any(change.outcome == "FAIL" for change in changes):
        raise SystemExit(1)
    if any(file.skipped for file in imported):
        raise SystemExit(EXIT_SKIPPED)


def _limits(gate: str | None) -> dict[str, float] | None:
    """What other tools' results are held to: {} for their speed, None for nothing."""
    from pytest_llmperf.settings.limits import parse_limits  # noqa: PLC0415

    if gate is None:
        return None
    return {} if gate == "on" else parse_limits(gate, "--gate")


def _import(store: Store, path: Path) -> Imported:
    """Import a file, and name on standard error what the store notes and which lines it skipped."""
    from pytest_llmperf.history.transfer import import_file  # noqa: PLC0415

    imported = import_file(store, project_root(), path)
    for line in (*store.notices, *map(str, imported.skipped)):
        click.echo(encodable(line), err=True)
    store.notices.clear()
    return imported


def _report_imported(
    store_name: str, imported: Sequence[Imported], changes: Sequence[Change], *, as_json: bool
) -> None:
    names = ("new", "known", "finished", "accepted")
    counts = {name: sum(getattr(file, name) for file in imported) for name in names}
    if as_json:
        skipped = [line for file in imported for line in file.skipped]
        print_json({"store": store_name, **counts, "skipped": skipped, "rows": changes})
        return
    if changes:
        print_changes(changes)
    click.echo(
        f"{counts['new']} records imported to {store_name}; {counts['known']} already present, "
        f"{counts['finished']} outcomes updated, {counts['accepted']} accepted changes added"
    )


def _selected(
    store: Store, parts: tuple[str, ...], series: str | None, since: str | None
) -> Iterator[Record]:
    """The records of the tests that have one of the parts in their name, oldest first."""
    if not parts:
        return store.records(series=series, since=since, oldest_first=True)
    tests = [test for test in store.tests() if any(part in test for part in parts)]
    require_known(parts, store)
    records = chain.from_iterable(
        store.records(test=test, series=series, since=since) for test in tests
    )
    return iter(sorted(records, key=lambda record: record.created))
