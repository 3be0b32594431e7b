"""`llmperf accept`: a change was meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    from pytest_llmperf.history.results import Series
    from pytest_llmperf.history.store import Store


@click.command(
    "accept",
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
def accept_command(
    series: str | None,
    reason: str,
    record_id: str | None,
    rename: tuple[str, str] | None,
    removed: str | None,
    who: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """A change was meant: later sessions are held against the new level of a series.

    A renamed test is held against its history under the new name. SERIES is a series key (a failed
    gate names it), or a part of a test's node id. One line is added to llmperf-accepted.jsonl in
    the project, to be reviewed and committed. The spread of the sessions before is kept.
    """
    _require_one({"SERIES": series, "--rename": rename, "--removed": removed})
    signature = {"who": user_name() if who is None else who, "why": reason, "when": now()}
    with open_history(store) as opened:
        if series is not None:
            _write(*_level(opened, series, record_id, signature), as_json=as_json)
        else:
            old, new = rename or (removed or "", "")
            _write(*_rename(opened, old, new, signature), as_json=as_json)


def _require_one(subjects: Mapping[str, object]) -> None:
    """Raise UsageError unless exactly one thing is accepted."""
    names = [name for name, value in subjects.items() if value]
    if len(names) != 1:
        raise UsageError(
            "one of SERIES, --rename OLD NEW and --removed OLD is needed, "
            f"not {' and '.join(names) or 'none'}."
        )


def _write(line: Acceptance | Rename, message: str, *, as_json: bool) -> None:
    from pytest_llmperf.history.accept import append  # noqa: PLC0415

    path = append(project_root(), line)
    if as_json:
        print_json({"accepted": line, "file": str(path)})
        return
    click.echo(encodable(message))
    click.echo(f"Added to {path}: review and commit it.")


def _level(
    store: Store, name: str, record_id: str | None, signature: dict[str, str]
) -> tuple[Acceptance, str]:
    from pytest_llmperf.history.accept import Acceptance  # noqa: PLC0415

    series = _one_series(store.series(), name)
    record = _record_of(store, series, record_id)
    line = Acceptance(
        series=series.key, record=record.id, created=record.created, test=record.test, **signature
    )
    start = f"from record {record.id} of {record.created} on"
    return line, f"{record.test} ({record.strategy}): {start}, its level is accepted."


def _rename(store: Store, old: str, new: str, signature: dict[str, str]) -> tuple[Rename, str]:
    from pytest_llmperf.history.accept import Rename, Reviewed  # noqa: PLC0415

    line = Rename(old=old, new=new, **signature)
    renamed = Reviewed(renames=(line,))
    n = sum(renamed.name_now(test) != test for test in store.tests())
    if not n:
        raise _unknown_test(store, old)
    histories = f"the history of {n} test{'' if n == 1 else 's'}"
    if new:
        return line, f"{old} was renamed to {new}: {histories} goes on under it."
    return line, f"{old} was removed: {histories} ends."


def _unknown_test(store: Store, name: str) -> UsageError:
    near = did_you_mean(name, store.tests())
    return UsageError(
        f"no test in {store.shown} is {name!r} or below it.{near} 'llmperf history' lists all."
    )


def _one_series(series: Sequence[Series], name: str) -> Series:
    """The series of this key, or the one with this in its test's name."""
    matches = [candidate for candidate in series if candidate.key == name]
    matches = matches or [candidate for candidate in series if name in candidate.test]
    if len(matches) == 1:
        return matches[0]
    raise UsageError(_not_one_series(name, matches, series))


def _not_one_series(name: str, matches: Sequence[Series], series: Sequence[Series]) -> str:
    how_many = f"{len(matches)} series match" if matches else "no series matches"
    if not series:
        return f"{how_many} {name!r}: the history is empty."
    listed = "".join(map(_series_line, matches or series))
    return f"{how_many} {name!r}. Name one by its key:{listed}"


def _series_line(series: Series) -> str:
    return f"\n  {series.key}  {series.test}  {series.workload_text}  {series.strategy}"


def _record_of(store: Store, series: Series, record_id: str | None) -> Record:
    for record in store.records(series=series.key):
        if record_id is None or record.id == record_id:
            return record
    raise UsageError(
        f"series {series.key} has no record {record_id!r}. "
        "'llmperf history --json' shows its records."
    )
