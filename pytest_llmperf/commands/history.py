"""`llmperf history`: the stored series, their last values, and where their level changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pytest_llmperf.commands.shared import (
    encodable,
    example,
    json_option,
    open_history,
    print_json,
    project_root,
    require_known,
    require_metric,
    store_option,
)

if TYPE_CHECKING:
    from pytest_llmperf.core.verdicts.change_points import Drift
    from pytest_llmperf.history.accept import Reviewed
    from pytest_llmperf.history.changes import LevelChange, SeriesChanges
    from pytest_llmperf.history.results import Point, Series
    from pytest_llmperf.history.store import Store

_DEFAULT_METRIC = "throughput"
_TELLING = 20
"""Newest points of a series that tell whether its sessions measure several models."""

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))
_ID_LENGTH = 8
"""Letters of an id: `llmperf compare` and `llmperf accept` take as many."""


class _Shown(NamedTuple):
    """A series with its last points."""

    series: Series
    points: Sequence[Point]


class _Changed(NamedTuple):
    """A metric of a series in one environment, with its changes of level."""

    series: Series
    metric: str
    changes: SeriesChanges


@click.command(
    "history",
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
def history_command(
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
        require_known([test] if test else [], opened)
        series = _matching(opened, test)
        require_metric(opened, metric)
        rows = [row for one in series for row in _shown(opened, one, metric, limit)]
        changed = _changed(opened, series, metric) if changes or fail_on_change else None
        if as_json:
            print_json(_document(opened, rows, changed))
        else:
            _print_notices(opened)
            _print(rows, changed, empty=_nothing(opened.public_url))
    if fail_on_change and any(row.changes.unaccepted for row in changed or ()):
        raise SystemExit(1)


def _print_notices(store: Store) -> None:
    for notice in store.notices:
        click.echo(f"note: {notice}", err=True)


# From the store


def _matching(store: Store, test: str | None) -> list[Series]:
    """The series of the tests that have the text in their name.

    A large store is not read for one test.
    """
    if test is None:
        return store.series()
    tests = [name for name in store.tests() if test in name]
    series = [one_series for name in tests for one_series in store.series(test=name)]
    return sorted(series, key=lambda one_series: one_series.last_created, reverse=True)


def _shown(store: Store, series: Series, metric: str | None, limit: int) -> list[_Shown]:
    """The last points of a series, or of each model where one session measured several."""
    from pytest_llmperf.history.models import are_several, by_model  # noqa: PLC0415

    name = metric or _headline(series)
    newest = store.points(series.key, name, limit=max(limit, _TELLING))
    if not are_several(newest):
        return [_Shown(series, newest[:limit])]
    models = by_model(store.points(series.key, name))
    return [_Shown(_of_model(series, own), own[:limit]) for own in models.values()]


def _of_model(series: Series, points: Sequence[Point]) -> Series:
    """The series as one of its models has it; its points are newest first."""
    from msgspec.structs import replace  # noqa: PLC0415

    last = points[0]
    return replace(
        series,
        model=last.model,
        n=len(points),
        last_id=last.record_id,
        last_created=last.created,
        last_outcome=last.outcome,
        last_environment_key=last.environment_key,
    )


def _headline(series: Series) -> str:
    is_prefill = series.workload_text.startswith("prefill")
    return "prefill_throughput" if is_prefill else _DEFAULT_METRIC


def _changed(store: Store, series: Sequence[Series], metric: str | None) -> list[_Changed]:
    from pytest_llmperf.history import accept  # noqa: PLC0415

    reviewed = accept.reviewed(project_root())
    return [
        changed
        for one_series in series
        for changed in _changes_of(store, one_series, metric or _headline(one_series), reviewed)
    ]


def _changes_of(
    store: Store, series: Series, metric: str, reviewed: Reviewed
) -> Iterator[_Changed]:
    """The changes of a series, which goes on under earlier names of its test."""
    from pytest_llmperf.history.changes import series_changes  # noqa: PLC0415

    newest = next(iter(store.records(series=series.key, limit=1)))
    _, *earlier_keys = reviewed.keys(newest)
    for changes in series_changes(store, series.key, metric, reviewed.accepted, earlier_keys):
        yield _Changed(series, metric, changes)


# As JSON


def _document(
    store: Store, rows: Sequence[_Shown], changed: Sequence[_Changed] | None
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "store": store.public_url,
        "notices": store.notices,
        "series": [_series_json(row) for row in rows],
    }
    if changed is not None:
        document["changes"] = [_changes_json(row) for row in changed]
    return document


def _series_json(row: _Shown) -> dict[str, Any]:
    from msgspec import to_builtins  # noqa: PLC0415

    return {**to_builtins(row.series), "points": to_builtins(row.points)}


def _changes_json(changed: _Changed) -> dict[str, Any]:
    from msgspec import to_builtins  # noqa: PLC0415

    return {
        "series": changed.series.key,
        "test": changed.series.test,
        "metric": changed.metric,
        "unaccepted": changed.changes.unaccepted,
        **to_builtins(changed.changes),
    }


# As text


def _print(rows: Sequence[_Shown], changed: Sequence[_Changed] | None, *, empty: str) -> None:
    if not rows:
        click.echo(empty)
        return
    _print_series(rows)
    if changed is not None:
        _print_changes(changed)


def _print_series(rows: Sequence[_Shown]) -> None:
    """Print the series below the name of their test, each with its values, newest first."""
    by_test: dict[str, list[_Shown]] = {}
    for row in rows:
        by_test.setdefault(row.series.test, []).append(row)
    for test, shown in by_test.items():
        click.echo(encodable(test))
        for row in shown:
            click.echo(encodable(f"  {_series_line(row.series)}"))
            for line in _aligned(_point_rows(row)):
                click.echo(encodable(f"    {line}"))


def _series_line(series: Series) -> str:
    label = f" ({series.label})" if series.label else ""
    runs = f"{series.n} run{'' if series.n == 1 else 's'}"
    names = (f"{series.strategy}{label}", series.workload_text, series.model)
    return f"{', '.join(names)}: {runs}, series {series.key[:_ID_LENGTH]}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    from pytest_llmperf.report.table import display_width, pad  # noqa: PLC0415

    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(pad(cell, width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in rows
    ]


def _print_changes(changed: Sequence[_Changed]) -> None:
    lines = [line for row in changed for line in _change_lines(row)]
    for line in lines or ["no change of level"]:
        click.echo(encodable(line))


def _nothing(store_name: str) -> str:
    return f"The history {store_name} is empty. A pytest run with llmperf tests fills it."


def _point_rows(row: _Shown) -> list[tuple[str, ...]]:
    """Return the cells of each value, newest first: what it is, how old, and its record's id."""
    series = row.series
    if not row.points:
        return [("-", "", "", _age(series.last_created), series.last_outcome, "")]
    return list(map(_point_cells, row.points))


def _point_cells(point: Point) -> tuple[str, ...]:
    from pytest_llmperf.core.format import (  # noqa: PLC0415
        NOT_MEASURABLE,
        format_interval,
        format_value,
    )

    record = f"record {point.record_id[:_ID_LENGTH]}"
    samples = f"{point.n} sample{'' if point.n == 1 else 's'}"
    last_cells = (samples, _age(point.created), point.outcome, record)
    if point.value is None:
        return (NOT_MEASURABLE, "", *last_cells)
    interval = format_interval(point.value, point.low, point.high, point.unit)
    return (format_value(point.value, point.unit), interval, *last_cells)


def _age(created: str) -> str:
    """Time since, in its largest unit: "4 min", "3 d"."""
    from datetime import UTC, datetime  # noqa: PLC0415

    since = datetime.now(UTC) - datetime.fromisoformat(created)
    return _in_largest_unit(max(0, int(since.total_seconds())))


def _in_largest_unit(seconds: int) -> str:
    for size, name in _UNITS:
        if seconds >= size:
            return f"{seconds // size} {name}"
    return f"{seconds} s"


def _change_lines(changed: _Changed) -> list[str]:
    """One line a change of level, and one for a drift that is more than noise."""
    steps = (_step_line(changed, step) for step in changed.changes.changes)
    return [*steps, *_drift_lines(changed)]


def _drift_lines(changed: _Changed) -> list[str]:
    drift = changed.changes.drift
    if drift is None or not drift.significant:
        return []
    return [_drift_line(changed, drift)]


def _drift_line(changed: _Changed, drift: Drift) -> str:
    span = f"from its first to its latest {drift.n_latest} sessions"
    return _change_line(changed, drift.anchor, drift.latest, span)


def _step_line(changed: _Changed, step: LevelChange) -> str:
    return _change_line(changed, step.point.before, step.point.after, _start(step))


def _start(step: LevelChange) -> str:
    accepted = ", accepted" if step.accepted else ""
    return f"from record {step.after.record_id} of {step.after.created} on{accepted}"


def _change_line(changed: _Changed, before: float, after: float, when: str) -> str:
    from pytest_llmperf.core.format import format_percent, format_value  # noqa: PLC0415

    series, unit = changed.series, changed.changes.unit
    size = f"{format_percent(abs(after / before - 1), 2)} {'less' if after < before else 'more'}"
    levels = f"{format_value(before, unit)} -> {format_value(after, unit)}"
    model = f" {changed.changes.model}" if changed.changes.model else ""
    return f"{series.test} {series.strategy}{model}: {changed.metric} {levels} ({size}) {when}"
