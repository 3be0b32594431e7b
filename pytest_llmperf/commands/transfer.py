"""`llmperf export` and `llmperf import`: a history as a file of JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_llmperf.commands.shared import (
    encodable,
    example,
    json_option,
    open_history,
    print_json,
    project_root,
    store_option,
    store_url,
)
from pytest_llmperf.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from pytest_llmperf.core.record import Record
    from pytest_llmperf.history.store import Store

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
    if as_json:
        print_json({"file": str(out), "added": n})
    else:
        click.echo(f"{n} line{'' if n == 1 else 's'} added to {out}")


@click.command(
    "import",
    short_help="Add exported records to the history.",
    epilog=example("llmperf import llmperf-history.jsonl"),
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@store_option
@json_option
def import_command(files: tuple[Path, ...], store: str | None, as_json: bool) -> None:
    """Add the records of JSON-lines files (of 'llmperf export' or --llmperf-json) to the history.

    May be repeated.

    Exit code 3 if lines were skipped (half-written, in conflict, of another unit): each is named,
    all others are imported.
    """
    from pytest_llmperf.history.store import open_store  # noqa: PLC0415
    from pytest_llmperf.history.transfer import Imported, import_file  # noqa: PLC0415

    url, folder = store_url(store)
    root = project_root()
    with open_store(url, folder=folder) as opened:
        done: list[Imported] = []
        for path in files:
            done.append(import_file(opened, root, path))
            for line in (*opened.notices, *map(str, done[-1].skipped)):
                click.echo(encodable(line), err=True)
            opened.notices.clear()
        n = {
            name: sum(getattr(each, name) for each in done)
            for name in ("new", "known", "finished", "accepted")
        }
        if as_json:
            print_json(
                {
                    "store": opened.shown,
                    **n,
                    "skipped": [line for each in done for line in each.skipped],
                }
            )
        else:
            click.echo(
                f"{n['new']} records imported to {opened.shown}; {n['known']} were there already, {n['finished']} got their "
                f"outcome, {n['accepted']} accepted changes added",
            )
    if any(each.skipped for each in done):
        raise SystemExit(EXIT_SKIPPED)


def _selected(
    opened: Store, tests: tuple[str, ...], series: str | None, since: str | None
) -> Iterator[Record]:
    if not tests:
        return opened.records(series=series, since=since, oldest_first=True)
    known = opened.tests()
    for wanted in tests:
        if not any(wanted in test for test in known):
            raise UsageError(
                f"no test in {opened.shown} has {wanted!r} in its name.{did_you_mean(wanted, known)}"
            )
    chosen = [test for test in known if any(wanted in test for wanted in tests)]
    found = chain.from_iterable(
        opened.records(test=test, series=series, since=since) for test in chosen
    )
    return iter(sorted(found, key=lambda record: record.created))
