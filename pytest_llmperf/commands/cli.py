"""The `llmperf` command. Each command loads what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pytest_llmperf.commands.accept import accept as accept_command
from pytest_llmperf.commands.advise import advise_command
from pytest_llmperf.commands.audit import audit_command
from pytest_llmperf.commands.bisect import bisect_command
from pytest_llmperf.commands.calibrate import calibrate_command
from pytest_llmperf.commands.compare import compare_command
from pytest_llmperf.commands.completion import completion_option
from pytest_llmperf.commands.report import report_command
from pytest_llmperf.commands.schema import schema_command
from pytest_llmperf.commands.shared import (
    encodable,
    example,
    json_option,
    open_history,
    print_json,
    print_table,
    project_root,
    require_metric,
    store_option,
)
from pytest_llmperf.commands.transfer import export_command, import_command
from pytest_llmperf.errors import LlmperfError, UsageError, did_you_mean

if TYPE_CHECKING:
    from pytest_llmperf.commands.examination import Check
    from pytest_llmperf.history.changes import SeriesChanges
    from pytest_llmperf.history.queries import Point, Series
    from pytest_llmperf.history.store import Store

_DEFAULT_METRIC = "throughput"


class _Commands(click.Group):
    """Shows our own errors as one message and exit code 1, never as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LlmperfError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            raise click.ClickException(f"standard output cannot be written: {error}") from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pytest-llmperf", prog_name="llmperf")
@completion_option
def main() -> None:
    """Performance tests for LLM inference: what this machine can do, and what earlier runs measured."""


main.add_command(accept_command)
main.add_command(advise_command)
main.add_command(audit_command)
main.add_command(bisect_command)
main.add_command(compare_command)
main.add_command(calibrate_command)
main.add_command(export_command)
main.add_command(import_command)
main.add_command(report_command)
main.add_command(schema_command)


@main.command(
    short_help="What works on this machine, what will not, and why.",
    epilog=example("llmperf doctor --engine scripted"),
)
@store_option
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="Exit with 1 unless tests can run on it."
)
@click.option(
    "--engine",
    metavar="NAME",
    multiple=True,
    help="Exit with 1 unless this engine is usable. May be given again.",
)
@json_option
def doctor(store: str | None, device: str | None, engine: tuple[str, ...], as_json: bool) -> None:
    """Devices, engines, strategies, models and the store: what works here, what will not, and why.

    Exit code 1 if something that was asked for (--store, --device, --engine) does not work, else 0.
    """
    from pytest_llmperf.commands.examination import device_works, examine, look  # noqa: PLC0415

    machine = look()
    checks = [*examine(machine), _store_check(store)]
    failed = _failed_engines(engine, checks)
    if device is not None and not device_works(machine, device):
        failed.append(f"device {device!r}")
    if store is not None and checks[-1].status == "broken":
        failed.append(f"store {store!r}")
    if as_json:
        print_json({"checks": checks, "failed": failed})
    else:
        _print_doctor(checks, failed)
    if failed:
        raise SystemExit(1)


@main.command(
    short_help="The stored series, their last values and changes.",
    epilog=example(
        "llmperf history test_speed --metric ttft.p50 --limit 5", "llmperf history --changes"
    ),
)
@click.argument("test", required=False)
@store_option
@click.option(
    "--metric",
    metavar="NAME",
    help=f"Metric to show (default: {_DEFAULT_METRIC}, or the prompt's for a prefill).",
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Values of each series.",
)
@click.option(
    "--changes",
    is_flag=True,
    help="Also show where the level of a series changed, and how far it drifted.",
)
@click.option(
    "--fail-on-change", is_flag=True, help="As --changes; exit with 1 if one was not accepted."
)
@json_option
def history(
    test: str | None,
    store: str | None,
    metric: str | None,
    limit: int,
    changes: bool,
    fail_on_change: bool,
    as_json: bool,
) -> None:
    """The series in the store and their last values. TEST is a node id or a part of one."""
    with open_history(store) as opened:
        found = _named(opened, test)
        require_metric(opened, metric)
        rows = [
            (series, opened.points(series.key, metric or _headline(series), limit=limit))
            for series in found
        ]
        changed = _changed(opened, found, metric) if changes or fail_on_change else []
        shown, notices = opened.shown, opened.notices
    unaccepted = fail_on_change and any(each.unaccepted for _, _, each in changed)
    if as_json:
        document = {
            "store": shown,
            "notices": notices,
            "series": [_series_json(series, points) for series, points in rows],
        }
        if changes or fail_on_change:
            document["changes"] = [_changes_json(*each) for each in changed]
        print_json(document)
        raise SystemExit(1 if unaccepted else 0)
    for notice in notices:
        click.echo(f"note: {notice}", err=True)
    if not rows:
        click.echo(_nothing(test, shown))
        return
    print_table(
        [cells for series, points in rows for cells in _series_cells(series, points)],
        _HISTORY_HEADER,
    )
    for line in [line for each in changed for line in _change_lines(*each)] or [
        "no change of level"
    ] * (changes or fail_on_change):
        click.echo(encodable(line))
    if unaccepted:
        raise SystemExit(1)


def _named(store: Store, test: str | None) -> list[Series]:
    """The series of the tests that have the text in their name.

    A large store is not read for one test.
    """
    if test is None:
        return store.series()
    found = [series for each in store.tests() if test in each for series in store.series(test=each)]
    return sorted(found, key=lambda series: series.last_created, reverse=True)


def _changed(
    store: Store, found: Sequence[Series], metric: str | None
) -> list[tuple[Series, str, SeriesChanges]]:
    from pytest_llmperf.history import accept, changes  # noqa: PLC0415

    reviewed = accept.reviewed(project_root())
    changed = []
    for series in found:
        name = metric or _headline(series)
        newest = next(iter(store.records(series=series.key, limit=1)))
        _, *earlier = reviewed.keys(newest)
        changed += [
            (series, name, each)
            for each in changes.series_changes(store, series.key, name, reviewed.accepted, earlier)
        ]
    return changed


def _changes_json(series: Series, metric: str, found: SeriesChanges) -> dict[str, Any]:
    from msgspec import to_builtins  # noqa: PLC0415

    return {
        "series": series.key,
        "test": series.test,
        "metric": metric,
        "unaccepted": found.unaccepted,
        **to_builtins(found),
    }


def _change_lines(series: Series, metric: str, found: SeriesChanges) -> list[str]:
    """One line a change of level, and one for a drift that is more than noise."""
    from pytest_llmperf.core.format import format_percent, format_value  # noqa: PLC0415

    def line(before: float, after: float, what: str) -> str:
        size = (
            f"{format_percent(abs(after / before - 1), 2)} {'less' if after < before else 'more'}"
        )
        levels = f"{format_value(before, found.unit)} -> {format_value(after, found.unit)}"
        return f"{series.test} {series.strategy}: {metric} {levels} ({size}) {what}"

    lines = [
        line(
            c.point.before,
            c.point.after,
            f"from record {c.after.record_id} of {c.after.created} on{', accepted' * c.accepted}",
        )
        for c in found.changes
    ]
    if found.drift is not None and found.drift.significant:
        lines.append(
            line(
                found.drift.anchor,
                found.drift.latest,
                f"from its first to its latest {found.drift.n_latest} sessions",
            ),
        )
    return lines


_HISTORY_HEADER = (
    "test",
    "workload",
    "model",
    "strategy",
    "runs",
    "value",
    "interval",
    "samples",
    "age",
    "outcome",
)


def _store_check(url: str | None) -> Check:
    from pytest_llmperf.commands.examination import Check  # noqa: PLC0415
    from pytest_llmperf.history.problems import StoreMissing  # noqa: PLC0415

    try:
        with open_history(url) as store:
            series = store.series()
            detail = f"{store.shown}: {len(series)} series, {sum(s.n for s in series)} records"
            return Check(
                area="store", name="history", status="ok", detail=" ".join([detail, *store.notices])
            )
    except StoreMissing as error:
        return Check(
            area="store",
            name="history",
            status="missing",
            detail=str(error),
            affects="no earlier runs to compare with",
        )
    except LlmperfError as error:
        return Check(
            area="store",
            name="history",
            status="broken",
            detail=str(error),
            affects="records go to the spool, if at all",
        )


def _failed_engines(asked: Sequence[str], checks: Sequence[Check]) -> list[str]:
    known = {check.name: check.status for check in checks if check.area == "engine"}
    for name in asked:
        if name not in known:
            raise UsageError(
                f"engine {name!r} is not known.{did_you_mean(name, known)} Engines: {', '.join(known)}."
            )
    return [f"engine {name!r}" for name in asked if known[name] != "ok"]


def _print_doctor(checks: Sequence[Check], failed: Sequence[str]) -> None:
    print_table(
        [(check.area, check.name, check.status, check.detail) for check in checks],
        ("area", "name", "status", "detail"),
    )
    alike: dict[tuple[str, str, str], list[str]] = {}
    for check in checks:
        if check.affects:
            alike.setdefault((check.area, check.affects, check.remedy), []).append(check.name)
    if alike:
        click.echo("\nWill not work here:")
    for (area, affects, remedy), names in alike.items():
        click.echo(
            f"  {area} {', '.join(names)}: {affects}" + (f"\n    -> {remedy}" if remedy else "")
        )
    if failed:
        click.echo(f"\nAsked for and not working: {', '.join(failed)}")


def _headline(series: Series) -> str:
    return "prefill_throughput" if series.workload_text.startswith("prefill") else _DEFAULT_METRIC


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
    return (
        format_value(point.value, point.unit),
        format_interval(point.value, point.low, point.high, point.unit),
        *rest,
    )


def _age(created: str) -> str:
    """Time since, in its largest unit: "4 min", "3 d"."""
    from datetime import UTC, datetime  # noqa: PLC0415

    seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    units = ((86400, "d"), (3600, "h"), (60, "min"))
    return next(
        (f"{int(seconds // size)} {name}" for size, name in units if seconds >= size),
        f"{max(0, int(seconds))} s",
    )
