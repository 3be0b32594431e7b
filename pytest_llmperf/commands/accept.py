"""`llmperf accept`: a change was meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pytest_llmperf.commands.shared import (
    encodable,
    example,
    json_option,
    now,
    open_history,
    print_json,
    project_root,
    store_option,
    user_name,
)
from pytest_llmperf.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from pytest_llmperf.core.record import Record
    from pytest_llmperf.history.accept import Acceptance, Rename
    from pytest_llmperf.history.queries import Series
    from pytest_llmperf.history.store import Store


@click.command(
    short_help="Say that a change of level, a rename or a removal was meant.",
    epilog=example("llmperf accept test_speed --reason 'a larger model'"),
)
@click.argument("series", required=False)
@click.option("--reason", required=True, help="Why the change was meant.")
@click.option(
    "--record",
    "record_id",
    metavar="ID",
    help="The record that has the new level. Default: the newest of the series.",
)
@click.option(
    "--rename",
    nargs=2,
    metavar="OLD NEW",
    help="A test (a class, a file) has another node id: its history goes on under it.",
)
@click.option(
    "--removed",
    metavar="OLD",
    help="A test (a class, a file) was removed on purpose: nothing misses it.",
)
@click.option("--who", help="Who accepts it. Default: the user's name here.")
@store_option
@json_option
def accept(
    series: str | None,
    reason: str,
    record_id: str | None,
    rename: tuple[str, str] | None,
    removed: str | None,
    who: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """A change was meant: later sessions are held against a series' new level, or a renamed test against its history.

    SERIES is a series key (a failed gate names it), or a part of a test's node id. One line is added to
    llmperf-accepted.jsonl in the project, to be reviewed and committed. The spread of the sessions before is kept.
    """
    asked = [
        name
        for name, given in (("SERIES", series), ("--rename", rename), ("--removed", removed))
        if given
    ]
    if len(asked) != 1:
        raise UsageError(
            f"one of SERIES, --rename OLD NEW and --removed OLD is needed, not {' and '.join(asked) or 'none'}."
        )
    signature = {"who": user_name() if who is None else who, "why": reason, "when": now()}
    with open_history(store) as opened:
        if series is not None:
            _write(*_level(opened, series, record_id, signature), as_json=as_json)
        else:
            old, new = rename or (removed or "", "")
            _write(*_rename(opened, old, new, signature), as_json=as_json)


def _write(line: Acceptance | Rename, said: str, *, as_json: bool) -> None:
    from pytest_llmperf.history import accept as accepted  # noqa: PLC0415

    path = accepted.append(project_root(), line)
    if as_json:
        print_json({"accepted": line, "file": str(path)})
        return
    click.echo(encodable(said))
    click.echo(f"Added to {path}: review and commit it.")


def _level(
    opened: Store, series: str, record_id: str | None, signature: dict[str, str]
) -> tuple[Acceptance, str]:
    from pytest_llmperf.history.accept import Acceptance  # noqa: PLC0415

    found = _one_series(opened.series(), series)
    record = _record_of(opened, found, record_id)
    line = Acceptance(
        series=found.key, record=record.id, created=record.created, test=record.test, **signature
    )
    return (
        line,
        f"{record.test} ({record.strategy}): from record {record.id} of {record.created} on, its level is accepted.",
    )


def _rename(opened: Store, old: str, new: str, signature: dict[str, str]) -> tuple[Rename, str]:
    from pytest_llmperf.history.accept import Rename, Reviewed  # noqa: PLC0415

    line = Rename(old=old, new=new, **signature)
    tests = opened.tests()
    concerned = [test for test in tests if Reviewed(renames=(line,)).name_now(test) != test]
    if not concerned:
        raise UsageError(
            f"no test in {opened.shown} is {old!r} or below it.{did_you_mean(old, tests)} 'llmperf history' lists all.",
        )
    n = f"the history of {len(concerned)} test{'' if len(concerned) == 1 else 's'}"
    return (
        line,
        f"{old} was renamed to {new}: {n} goes on under it."
        if new
        else f"{old} was removed: {n} ends.",
    )


def _one_series(all_series: Sequence[Series], wanted: str) -> Series:
    found = [each for each in all_series if wanted == each.key] or [
        each for each in all_series if wanted in each.test
    ]
    if len(found) == 1:
        return found[0]
    names = "".join(
        f"\n  {each.key}  {each.test}  {each.workload_text}  {each.strategy}"
        for each in found or all_series
    )
    how_many = f"{len(found)} series match {wanted!r}" if found else f"no series matches {wanted!r}"
    raise UsageError(
        f"{how_many}. Name one by its key:{names}"
        if names
        else f"{how_many}: the history is empty."
    )


def _record_of(store: Store, series: Series, record_id: str | None) -> Record:
    records = store.records(series=series.key)
    found = next(
        (record for record in records if record_id is None or record.id == record_id), None
    )
    if found is None:
        raise UsageError(
            f"series {series.key} has no record {record_id!r}. 'llmperf history --json' shows its records."
        )
    return found
