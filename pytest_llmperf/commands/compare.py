"""`llmperf compare A B`: what was measured before and after."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pytest_llmperf.commands.shared import (
    encodable,
    example,
    json_option,
    open_history,
    print_json,
    print_table,
    require_known,
    store_option,
)
from pytest_llmperf.errors import UsageError

if TYPE_CHECKING:
    from pytest_llmperf.core.change import Change
    from pytest_llmperf.core.record import Record
    from pytest_llmperf.history.store import Store

BASE = "base"
LAST = "last"
EXIT_COMPARED_NOTHING = 6
_MIN_PREFIX = 4
_HEADER = (
    "test",
    "strategy",
    "metric",
    "before",
    "after",
    "ratio",
    "interval",
    "rests on",
    "verdict",
)


@click.command(
    "compare",
    short_help="Before and after: values, ratios, verdicts.",
    epilog=example(
        "llmperf compare before.jsonl after.jsonl --metric throughput:5%",
        "llmperf compare last",
        "llmperf compare test_speed",
    ),
)
@click.argument("before", metavar="A")
@click.argument("after", metavar="[B]", required=False)
@click.option(
    "--metric",
    metavar="METRIC[:LIMIT]",
    multiple=True,
    help="What to compare, and how much worse it may be. May be given again.",
)
@click.option("--model", default="", help="Of two servers: the model that they serve.")
@click.option(
    "--engine", default="server", help="Of two servers: the engine; a preset as server:vllm."
)
@click.option("--name", default="", help="Of two servers: what the model is served as.")
@click.option("--tokenizer", default="", help="Of two servers: the folder of the tokenizer.")
@store_option
@json_option
def compare_command(
    before: str,
    after: str | None,
    metric: tuple[str, ...],
    store: str | None,
    as_json: bool,
    **served: Any,
) -> None:
    """What was measured before (A) and after (B): values, ratio, interval, verdict.

    A and B each name a JSON-lines file, or in the store a record, a session, a series (by its id,
    of which the first letters suffice), a git commit, or 'last', the newest session. 'base' as A is
    what --llmperf-against measured B against. With A alone, 'last' or a part of tests' names, the
    newest session is compared with what the same tests measured in the session before it.

    A and B may also be two servers (a URL, image:NAME, command:…, program:PATH, args:…): they are
    measured side by side now.

    Exit code 1 if something is worse than its limit, 6 if nothing could be compared, else 0.
    """
    from pytest_llmperf.commands.servers.comparing import (  # noqa: PLC0415
        Work,
        are_servers,
        compare_servers,
    )
    from pytest_llmperf.settings.limits import parse_limits  # noqa: PLC0415

    if after is not None and are_servers(before, after):
        arguments = [f"--llmperf-against-limits={','.join(metric)}"] if metric else []
        arguments += [f"--llmperf-store={store}"] if store else []
        raise SystemExit(compare_servers(before, after, Work(**served), arguments))
    limits = parse_limits(",".join(metric), "--metric")
    if after is None:
        sides = _last_and_before(before, store)
        changes = _contrast(*sides, limits)
    else:
        changes = _changes(before, _records(after, store), store, limits)
    if as_json:
        print_json({"before": before, "after": after, "rows": changes})
    elif changes:
        print_changes(changes)
    elif before == BASE:
        click.echo(f"Nothing in {after!r} was measured side by side.")
    else:
        click.echo("Neither side holds a run.")
    raise SystemExit(_exit_code(changes))


def _changes(
    before: str, newer: Sequence[Record], store: str | None, limits: Mapping[str, float]
) -> list[Change]:
    from pytest_llmperf.gate.contrast import side_by_side  # noqa: PLC0415

    if before == BASE:
        return side_by_side(newer, limits)
    return _contrast(_records(before, store), newer, limits)


def _contrast(
    older: Sequence[Record], newer: Sequence[Record], limits: Mapping[str, float]
) -> list[Change]:
    from pytest_llmperf.gate.contrast import contrast  # noqa: PLC0415

    return contrast(older, newer, limits)


def _exit_code(changes: Sequence[Change]) -> int:
    outcomes = {change.outcome for change in changes}
    if "FAIL" in outcomes:
        return 1
    return 0 if outcomes - {"NOT COMPARABLE"} else EXIT_COMPARED_NOTHING


# Records


def _records(selector: str, store: str | None) -> list[Record]:
    """The records that a selector names, oldest first. Raises UsageError where it names none."""
    if os.path.isfile(selector):  # noqa: PTH113  pathlib raises for a name that is too long
        return _file_records(Path(selector))
    _require_length_of_id(selector)
    return _stored_records(selector, store)


def _last_and_before(what: str, store: str | None) -> tuple[list[Record], list[Record]]:
    """Return what was measured before the newest session, and in it: of all tests, or of some.

    Raises UsageError where there is no such test, or nothing before.
    """
    with open_history(store) as opened:
        if what != LAST:
            require_known([what], opened)
        newer = _newest_session(opened, "" if what == LAST else what)
        older = [record for new in newer for record in _before(opened, new)]
    if not older:
        raise UsageError(
            f"{what!r}: nothing was measured before the newest session of it. 'llmperf history' "
            "lists what there is; A and B each name a record, a session or a file."
        )
    return list({record.id: record for record in older}.values()), newer


def _newest_session(store: Store, part: str) -> list[Record]:
    """Return the records of the newest session that measured a test with `part` in its name."""
    newest = next((record for record in store.records() if part in record.test), None)
    if newest is None:
        return []
    return [record for record in store.find(newest.session_id) if part in record.test]


def _before(store: Store, record: Record) -> list[Record]:
    """Return what the session before measured of a record's series."""
    from pytest_llmperf.history.identity import series_key  # noqa: PLC0415

    series = store.records(series=series_key(record))
    older = [other for other in series if other.session_id != record.session_id]
    return [other for other in older if other.session_id == older[0].session_id]


def _require_length_of_id(selector: str) -> None:
    if len(selector) < _MIN_PREFIX:
        raise UsageError(
            f"{selector!r} is no file, and too short for an id: "
            f"at least {_MIN_PREFIX} letters are needed."
        )


def _stored_records(selector: str, store: str | None) -> list[Record]:
    with open_history(store) as opened:
        return _find(opened, selector) or _refuse_unknown(selector, opened.public_url)


def _find(store: Store, selector: str) -> list[Record]:
    if selector == LAST:
        return _newest_session(store, "")
    return store.find(selector) or store.find_commit(_commit(selector))


def _refuse_unknown(selector: str, store_name: str) -> NoReturn:
    raise UsageError(
        f"{selector!r} is no file, and in {store_name} no record, session, series or commit "
        "begins with it. 'llmperf history' shows their ids."
    )


def _file_records(path: Path) -> list[Record]:
    from pytest_llmperf.report.json_lines import BadLine, read  # noqa: PLC0415

    newest: dict[str, Record] = {}
    for line in read(path):
        if isinstance(line, BadLine):
            click.echo(f"note: {line}", err=True)
        else:
            newest[line.id] = line
    return list(newest.values())


def _commit(selector: str) -> str:
    """The hash of a revision of the repository here.

    What git does not know is taken for the beginning of a hash.
    """
    from pytest_llmperf.settings.git import commit_of  # noqa: PLC0415

    return commit_of(Path.cwd(), selector) or selector


# Text


def print_changes(changes: Sequence[Change]) -> None:
    """Print a table of changes, and the reasons of those without a verdict."""
    print_table(list(map(_cells, changes)), _HEADER)
    for change in changes:
        if change.reason:
            click.echo(encodable(_reason_line(change)))


def _reason_line(change: Change) -> str:
    return f"{change.outcome} {change.test} {change.metric}: {change.reason}"


def _cells(change: Change) -> tuple[str, ...]:
    from pytest_llmperf.report.changes import labelled_test, number_cells  # noqa: PLC0415

    names = (labelled_test(change), change.strategy, change.metric)
    return (*names, *number_cells(change), change.how, change.outcome)
