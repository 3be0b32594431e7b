"""`llmperf accept`: accepts an intended change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

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
    from pathlib import Path

    from pytest_llmperf.core.record import Record
    from pytest_llmperf.history.accept import Acceptance, Rename
    from pytest_llmperf.history.results import Series
    from pytest_llmperf.history.store import Store


@click.command(
    "accept",
    short_help="Accept an intended change of level, a rename or a removal.",
    epilog=example("llmperf accept test_speed --reason 'a larger model'"),
)
@click.argument("series", required=False)
@click.option("--reason", required=True, help="Why the change was made.")
@click.option(
    "--record",
    "record_id",
    metavar="ID",
    help="The record that has the new level. Default: the newest of the series.",
)
@click.option(
    "--include",
    metavar="RECORD",
    help="The session of this record is an ordinary one: it is accepted, and the level stays.",
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
    include: str | None,
    rename: tuple[str, str] | None,
    removed: str | None,
    who: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Accept an intended change: later sessions are compared with the new level of a series.

    A renamed test is compared with its history under the old name. SERIES is a series key (a failed
    gate names it), or a part of a test's node id. The command adds one line to
    llmperf-accepted.jsonl in the project; review and commit it. How much earlier sessions spread is
    kept.

    --include puts back a session that the gate holds back or leaves out, such as an outlier.
    """
    subjects = {"SERIES": series, "--include": include, "--rename": rename, "--removed": removed}
    _require_one(subjects)
    signature = {"who": user_name() if who is None else who, "why": reason, "when": now()}
    with open_history(store) as opened:
        if series is not None:
            accepted_series = _one_series(opened.series(), series)
            _write(*_level(opened, accepted_series, record_id, signature), as_json=as_json)
        elif include is not None:
            _write(*_included(opened, include, signature), as_json=as_json)
        else:
            old, new = rename or (removed or "", "")
            _write(*_rename(opened, old, new, signature), as_json=as_json)


def _require_one(subjects: Mapping[str, object]) -> None:
    """Raise UsageError unless exactly one thing is accepted."""
    names = [name for name, value in subjects.items() if value]
    if len(names) != 1:
        raise UsageError(_one_is_needed(names))


def _one_is_needed(names: Sequence[str]) -> str:
    return (
        "one of SERIES, --include RECORD, --rename OLD NEW and --removed OLD is needed, "
        f"not {' and '.join(names) or 'none'}."
    )


def _write(line: Acceptance | Rename, message: str, *, as_json: bool) -> None:
    from pytest_llmperf.history.accept import append  # noqa: PLC0415

    path = append(project_root(), line)
    if as_json:
        print_json({"accepted": line, "file": str(path)})
    else:
        _print_added(message, path)


def _print_added(message: str, path: Path) -> None:
    click.echo(encodable(message))
    click.echo(f"Added to {path}: review and commit it.")


def _level(
    store: Store, series: Series, record_id: str | None, signature: dict[str, str]
) -> tuple[Acceptance, str]:
    record = _record_of(store, series, record_id)
    return _acceptance(series, record, signature), _level_is_accepted(record)


def _acceptance(series: Series, record: Record, signature: dict[str, str]) -> Acceptance:
    from pytest_llmperf.history.accept import Acceptance  # noqa: PLC0415

    return Acceptance(
        series=series.key,
        record=record.id,
        created=record.created,
        test=record.test,
        level=True,
        **signature,
    )


def _included(store: Store, start: str, signature: dict[str, str]) -> tuple[Acceptance, str]:
    """A session that counts, by the first letters of its record's id."""
    from pytest_llmperf.history.accept import Acceptance  # noqa: PLC0415
    from pytest_llmperf.history.identity import series_key  # noqa: PLC0415

    record = _only_record(store, start)
    line = Acceptance(
        series=series_key(record),
        record=record.id,
        created=record.created,
        test=record.test,
        level=False,
        **signature,
    )
    text = f"the session of record {record.id} of {record.created} is one of the accepted ones."
    return line, f"{record.test} ({record.strategy}): {text}"


def _only_record(store: Store, start: str) -> Record:
    records = [record for record in store.find(start) if record.id.startswith(start)]
    if len(records) == 1:
        return records[0]
    how_many = f"{len(records)} records" if records else "no record"
    raise UsageError(
        f"{how_many} of {store.public_url}: {start!r} has to begin the id of one. "
        "The gate names it; 'llmperf history --json' shows all."
    )


def _level_is_accepted(record: Record) -> str:
    start = f"from record {record.id} of {record.created} on"
    return f"{record.test} ({record.strategy}): {start}, its level is accepted."


def _rename(store: Store, old: str, new: str, signature: dict[str, str]) -> tuple[Rename, str]:
    from pytest_llmperf.history.accept import Rename  # noqa: PLC0415

    line = Rename(old=old, new=new, **signature)
    histories = _histories(len(_renamed_tests(store, line)))
    return line, _what_becomes_of_them(line, histories)


def _renamed_tests(store: Store, line: Rename) -> list[str]:
    """The tests that the line is about. Raises UsageError where there are none."""
    return _tests_with_another_name(store, line) or _refuse_unknown_test(store, line.old)


def _tests_with_another_name(store: Store, line: Rename) -> list[str]:
    from pytest_llmperf.history.accept import Reviewed  # noqa: PLC0415

    renamed = Reviewed(renames=(line,))
    return [test for test in store.tests() if renamed.name_now(test) != test]


def _what_becomes_of_them(line: Rename, histories: str) -> str:
    if line.new:
        return f"{line.old} was renamed to {line.new}: {histories} goes on under it."
    return f"{line.old} was removed: {histories} ends."


def _histories(n_tests: int) -> str:
    return f"the history of {n_tests} test{'' if n_tests == 1 else 's'}"


def _refuse_unknown_test(store: Store, name: str) -> NoReturn:
    near = did_you_mean(name, store.tests())
    raise UsageError(
        f"no test in {store.public_url} is {name!r} or below it.{near} 'llmperf history' lists all."
    )


def _one_series(series: Sequence[Series], name: str) -> Series:
    """The series of this key, or the one with this in its test's name."""
    matches = _matching(series, name)
    if len(matches) == 1:
        return matches[0]
    raise UsageError(_not_one_series(name, matches, series))


def _matching(series: Sequence[Series], name: str) -> list[Series]:
    by_key = [candidate for candidate in series if candidate.key == name]
    return by_key or [candidate for candidate in series if name in candidate.test]


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
        if record_id in (None, record.id):
            return record
    raise _no_such_record(series, record_id)


def _no_such_record(series: Series, record_id: str | None) -> UsageError:
    return UsageError(
        f"series {series.key} has no record {record_id!r}. "
        "'llmperf history --json' shows its records."
    )
