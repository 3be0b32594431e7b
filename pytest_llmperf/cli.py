"""The `llmperf` command. Each command loads what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_llmperf.errors import LlmperfError, UsageError, did_you_mean

if TYPE_CHECKING:
    from pytest_llmperf.core.record import Record
    from pytest_llmperf.history.changes import SeriesChanges
    from pytest_llmperf.history.queries import Point, Series
    from pytest_llmperf.history.store import Store
    from pytest_llmperf.session.doctor import Check

_COLOURS = {"ok": "green", "missing": "yellow", "limited": "yellow", "broken": "red", "PASS": "green", "FAIL": "red"}
_DEFAULT_METRIC = "throughput"
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
_store_option = click.option(
    "--store", metavar="URL", help="History store. Default: the project's `llmperf_store`, else sqlite:///.llmperf/history.db."
)


class _Commands(click.Group):
    """Shows our own errors as one message and exit code 1, never as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LlmperfError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pytest-llmperf", prog_name="llmperf")
def main() -> None:
    """Performance tests for LLM inference: what this machine can do, and what earlier runs measured."""


@main.command()
@_store_option
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Exit with 1 unless tests can run on it.")
@click.option("--engine", metavar="NAME", multiple=True, help="Exit with 1 unless this engine is usable. May be given again.")
@_json_option
def doctor(store: str | None, device: str | None, engine: tuple[str, ...], as_json: bool) -> None:
    """Devices, engines, strategies, models and the store: what works here, what will not, and why.

    Exit code 1 if something that was asked for (--store, --device, --engine) does not work, else 0.
    """
    from pytest_llmperf.session.doctor import device_works, examine, look  # noqa: PLC0415

    machine = look()
    checks = [*examine(machine), _store_check(store)]
    failed = _failed_engines(engine, checks)
    if device is not None and not device_works(machine, device):
        failed.append(f"device {device!r}")
    if store is not None and checks[-1].status == "broken":
        failed.append(f"store {store!r}")
    if as_json:
        _print_json({"checks": checks, "failed": failed})
    else:
        _print_doctor(checks, failed)
    if failed:
        raise SystemExit(1)


@main.command()
@click.argument("test", required=False)
@_store_option
@click.option("--metric", metavar="NAME", help=f"Metric to show (default: {_DEFAULT_METRIC}, or the prompt's for a prefill).")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), default=3, show_default=True, help="Values of each series.")
@click.option("--changes", is_flag=True, help="Also show where the level of a series changed, and how far it drifted.")
@click.option("--fail-on-change", is_flag=True, help="As --changes; exit with 1 if one was not accepted.")
@_json_option
def history(
    test: str | None, store: str | None, metric: str | None, limit: int, changes: bool, fail_on_change: bool, as_json: bool
) -> None:
    """The series in the store and their last values. TEST is a node id or a part of one."""
    with _open(store) as opened:
        found = [series for series in opened.series() if test is None or test in series.test]
        _require_metric(opened, found, metric)
        rows = [(series, opened.points(series.key, metric or _headline(series), limit=limit)) for series in found]
        changed = _changed(opened, found, metric) if changes or fail_on_change else []
        shown, notices = opened.shown, opened.notices
    unaccepted = fail_on_change and any(each.unaccepted for _, _, each in changed)
    if as_json:
        document = {"store": shown, "notices": notices, "series": [_series_json(series, points) for series, points in rows]}
        if changes or fail_on_change:
            document["changes"] = [_changes_json(*each) for each in changed]
        _print_json(document)
        raise SystemExit(1 if unaccepted else 0)
    for notice in notices:
        click.echo(f"note: {notice}", err=True)
    if not rows:
        click.echo(_nothing(test, shown))
        return
    _print_table([cells for series, points in rows for cells in _series_cells(series, points)], _HISTORY_HEADER)
    for line in [line for each in changed for line in _change_lines(*each)] or ["no change of level"] * (
        changes or fail_on_change
    ):
        click.echo(_encodable(line))
    if unaccepted:
        raise SystemExit(1)


def _changed(store: Store, found: Sequence[Series], metric: str | None) -> list[tuple[Series, str, SeriesChanges]]:
    from pytest_llmperf.history import accept, changes  # noqa: PLC0415

    accepted = accept.read(_store_url(None)[1])
    named = [(series, metric or _headline(series)) for series in found]
    return [(s, name, each) for s, name in named for each in changes.series_changes(store, s.key, name, accepted)]


def _changes_json(series: Series, metric: str, found: SeriesChanges) -> dict[str, Any]:
    from msgspec import to_builtins  # noqa: PLC0415

    return {"series": series.key, "test": series.test, "metric": metric, "unaccepted": found.unaccepted, **to_builtins(found)}


def _change_lines(series: Series, metric: str, found: SeriesChanges) -> list[str]:
    """One line a change of level, and one for a drift that is more than noise."""
    from pytest_llmperf.core.format import format_percent, format_value  # noqa: PLC0415

    def line(before: float, after: float, what: str) -> str:
        size = f"{format_percent(abs(after / before - 1), 2)} {'less' if after < before else 'more'}"
        levels = f"{format_value(before, found.unit)} -> {format_value(after, found.unit)}"
        return f"{series.test} {series.strategy}: {metric} {levels} ({size}) {what}"

    lines = [
        line(c.point.before, c.point.after, f"from record {c.after.record_id} of {c.after.created} on{', accepted' * c.accepted}")
        for c in found.changes
    ]
    if found.drift is not None and found.drift.significant:
        lines.append(
            line(found.drift.anchor, found.drift.latest, f"from its first to its latest {found.drift.n_latest} sessions")
        )
    return lines


@main.command()
@click.argument("series")
@click.option("--reason", required=True, help="Why the change was meant.")
@click.option("--record", "record_id", metavar="ID", help="The record that has the new level. Default: the newest of the series.")
@click.option("--who", help="Who accepts it. Default: the user's name here.")
@_store_option
def accept(series: str, reason: str, record_id: str | None, who: str | None, store: str | None) -> None:
    """A change of a series was meant: later sessions are held against its new level.

    SERIES is a series key (a failed gate names it), or a part of a test's node id. One line is added to
    llmperf-accepted.jsonl in the project, to be reviewed and committed. The spread of the sessions before is kept.
    """
    from pytest_llmperf.history import accept as accepted  # noqa: PLC0415

    _, root = _store_url(None)
    with _open(store) as opened:
        found = _one_series(opened.series(), series)
        record = _record_of(opened, found, record_id)
    acceptance = accepted.Acceptance(
        series=found.key,
        record=record.id,
        created=record.created,
        test=record.test,
        who=_user() if who is None else who,
        why=reason,
        when=_now(),
    )
    path = accepted.append(root, acceptance)
    click.echo(f"{record.test} ({record.strategy}): from record {record.id} of {record.created} on, its level is accepted.")
    click.echo(f"Added to {path}: review and commit it.")


def _one_series(all_series: Sequence[Series], wanted: str) -> Series:
    found = [each for each in all_series if wanted == each.key] or [each for each in all_series if wanted in each.test]
    if len(found) == 1:
        return found[0]
    names = "".join(f"\n  {each.key}  {each.test}  {each.workload_text}  {each.strategy}" for each in found or all_series)
    how_many = f"{len(found)} series match {wanted!r}" if found else f"no series matches {wanted!r}"
    raise UsageError(f"{how_many}. Name one by its key:{names}" if names else f"{how_many}: the history is empty.")


def _record_of(store: Store, series: Series, record_id: str | None) -> Record:
    records = store.records(series=series.key)
    found = next((record for record in records if record_id is None or record.id == record_id), None)
    if found is None:
        raise UsageError(f"series {series.key} has no record {record_id!r}. 'llmperf history --json' shows its records.")
    return found


def _user() -> str:
    import getpass  # noqa: PLC0415

    return getpass.getuser()


def _now() -> str:
    from datetime import UTC, datetime  # noqa: PLC0415

    return datetime.now(UTC).isoformat(timespec="seconds")


_HISTORY_HEADER = ("test", "workload", "model", "strategy", "runs", "value", "interval", "samples", "age", "outcome")


def _open(url: str | None) -> Store:
    from pytest_llmperf.history.store import open_store  # noqa: PLC0415

    found, root = _store_url(url)
    return open_store(found, create=False, folder=root)


def _store_url(url: str | None) -> tuple[str, Path]:
    """The store, and the folder that relative paths are meant from: the working directory for an option, else the root."""
    from pytest_llmperf.session.options import DEFAULT_STORE  # noqa: PLC0415
    from pytest_llmperf.session.project import find_project  # noqa: PLC0415

    here = Path.cwd()
    if url is not None:
        return url, here
    project = find_project(here)
    if project.store == "none":
        raise UsageError(f"the project at {project.root} keeps no history (llmperf_store = none). Name a store with --store URL.")
    return project.store or DEFAULT_STORE, project.root


def _store_check(url: str | None) -> Check:
    from pytest_llmperf.history.problems import StoreMissing  # noqa: PLC0415
    from pytest_llmperf.session.doctor import Check  # noqa: PLC0415

    try:
        with _open(url) as store:
            series = store.series()
            detail = f"{store.shown}: {len(series)} series, {sum(s.n for s in series)} records"
            return Check(area="store", name="history", status="ok", detail=" ".join([detail, *store.notices]))
    except StoreMissing as error:
        return Check(area="store", name="history", status="missing", detail=str(error), affects="no earlier runs to compare with")
    except LlmperfError as error:
        return Check(
            area="store", name="history", status="broken", detail=str(error), affects="records go to the spool, if at all"
        )


def _failed_engines(asked: Sequence[str], checks: Sequence[Check]) -> list[str]:
    known = {check.name: check.status for check in checks if check.area == "engine"}
    for name in asked:
        if name not in known:
            raise UsageError(f"engine {name!r} is not known.{did_you_mean(name, known)} Engines: {', '.join(known)}.")
    return [f"engine {name!r}" for name in asked if known[name] != "ok"]


def _print_doctor(checks: Sequence[Check], failed: Sequence[str]) -> None:
    _print_table([(check.area, check.name, check.status, check.detail) for check in checks], ("area", "name", "status", "detail"))
    limits = [check for check in checks if check.affects]
    if limits:
        click.echo("\nWill not work here:")
    for check in limits:
        click.echo(f"  {check.area} {check.name}: {check.affects}" + (f"\n    -> {check.remedy}" if check.remedy else ""))
    if failed:
        click.echo(f"\nAsked for and not working: {', '.join(failed)}")


def _headline(series: Series) -> str:
    return "prefill_throughput" if series.workload_text.startswith("prefill") else _DEFAULT_METRIC


def _require_metric(store: Store, series: Sequence[Series], metric: str | None) -> None:
    if metric is None or not series:
        return
    known = store.metric_names()
    if metric not in known:
        raise UsageError(
            f"metric {metric!r} is not in the newest records.{did_you_mean(metric, known)} Metrics: {', '.join(known)}."
        )


def _nothing(test: str | None, shown: str) -> str:
    if test is None:
        return f"The history {shown} is empty. A pytest run with llmperf tests fills it."
    return f"No test in {shown} has {test!r} in its name. 'llmperf history' lists them all."


def _series_json(series: Series, points: Sequence[Point]) -> dict[str, Any]:
    from msgspec import to_builtins  # noqa: PLC0415

    return {**to_builtins(series), "points": to_builtins(points)}


def _series_cells(series: Series, points: Sequence[Point]) -> list[tuple[str, ...]]:
    """One row a value, newest first; the series is named in the first."""
    test = f"{series.test} ({series.label})" if series.label else series.test
    names = (test, series.workload_text, series.model, series.strategy, str(series.n))
    if not points:
        return [(*names, "-", "", "", _age(series.last_created), series.last_outcome)]
    rows = [_point_cells(point) for point in points]
    return [(*names, *rows[0]), *(("",) * len(names) + cells for cells in rows[1:])]


def _point_cells(point: Point) -> tuple[str, ...]:
    from pytest_llmperf.core.format import NOT_MEASURABLE, format_interval, format_value  # noqa: PLC0415

    rest = (str(point.n), _age(point.created), point.outcome)
    if point.value is None:
        return (NOT_MEASURABLE, "", *rest)
    return (format_value(point.value, point.unit), format_interval(point.value, point.low, point.high, point.unit), *rest)


def _age(created: str) -> str:
    """Time since, in its largest unit: "4 min", "3 d"."""
    from datetime import UTC, datetime  # noqa: PLC0415

    seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    units = ((86400, "d"), (3600, "h"), (60, "min"))
    return next((f"{int(seconds // size)} {name}" for size, name in units if seconds >= size), f"{max(0, int(seconds))} s")


def _print_table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> None:
    """A table whose long cells fold on a terminal; elsewhere plain text, one line a row."""
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    if console.is_terminal:
        console.print(_rich_table(rows, header))
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for cells in (header, *rows):
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        click.echo(_encodable(line.rstrip()))


def _rich_table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> Any:
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    return table


def _encodable(text: str) -> str:
    from pytest_llmperf.report.table import showable  # noqa: PLC0415

    return showable(text, sys.stdout.encoding)


def _print_json(document: dict[str, Any]) -> None:
    from msgspec import json  # noqa: PLC0415

    click.echo(json.format(json.encode(document), indent=2).decode("utf-8"))
