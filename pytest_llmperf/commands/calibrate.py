"""`llmperf calibrate`: how much sessions differ when nothing has changed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_llmperf.commands.shared import encodable, example, json_option, print_json, print_table
from pytest_llmperf.errors import UsageError

if TYPE_CHECKING:
    from pytest_llmperf.commands.calibrating import Found, Session

_HEADER = (
    "test",
    "workload",
    "strategy",
    "metric",
    "sessions",
    "range",
    "spread",
    "false alarms",
    "autocorrelation",
    "floor",
)


@click.command(
    "calibrate",
    short_help="The noise of unchanged code, and the limit it allows.",
    context_settings={"ignore_unknown_options": True},
    epilog=example("llmperf calibrate --sessions 12 -- tests/test_speed.py"),
)
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- PYTEST ARGS]")
@click.option(
    "--model", help="Calibrate this model in place of tests, with --strategy and --workload."
)
@click.option("--strategy", default="auto", show_default=True, help="Strategy of --model.")
@click.option("--engine", default="transformers", show_default=True, help="Engine of --model.")
@click.option(
    "--workload",
    default="Decode()",
    show_default=True,
    help="Workload of --model, as a test writes it.",
)
@click.option(
    "--sessions", type=click.IntRange(min=8), default=12, show_default=True, help="Fresh sessions."
)
@click.option(
    "--pairs",
    type=click.IntRange(min=0),
    default=0,
    help="Go on, up to twice the sessions, until there are so many pairs.",
)
@click.option(
    "--budget",
    metavar="SECONDS",
    type=float,
    help="Sampling time of each run (default: as the tests say).",
)
@click.option(
    "--gate",
    metavar="METRIC:LIMIT,…",
    help="Metrics and limits. Default: the project's `llmperf_gate`, else the gate's.",
)
@click.option("--dry-run", is_flag=True, help="Report, and write no file.")
@json_option
def calibrate_command(
    pytest_args: tuple[str, ...],
    model: str | None,
    strategy: str,
    engine: str,
    workload: str,
    sessions: int,
    pairs: int,
    budget: float | None,
    gate: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Measure unchanged code in fresh sessions, and say how much they differ.

    For each metric: the spread between sessions, how often the gate would fail one of them by
    chance at its limit, the autocorrelation of pairs of repetitions, and the floor that one
    unchanged session in a thousand exceeds. The floors go to llmperf-calibration.toml with date,
    device, sessions and versions, to be reviewed and committed.
    """
    from pytest_llmperf.commands.calibrating import examine, test_file  # noqa: PLC0415
    from pytest_llmperf.settings.project import find_project  # noqa: PLC0415

    if (model is None) == (not pytest_args):
        raise UsageError(
            "either tests (llmperf calibrate -- tests/test_it.py) or --model is needed."
        )
    project = find_project(Path.cwd())
    limits = _limits(gate if gate is not None else str(project.ini.get("llmperf_gate", "on")))
    with tempfile.TemporaryDirectory(prefix="llmperf-calibrate-") as folder:
        selected = list(pytest_args)
        if model is not None:
            selected = [
                str(test_file(Path(folder), model, strategy, engine, workload)),
                f"--rootdir={project.root}",
            ]
        budgeted = (
            [] if budget is None else [f"--llmperf-budget={budget}", "--llmperf-precision=0.001"]
        )
        made = _measured(Path.cwd(), [*selected, *budgeted], sessions, pairs)
    found = examine(made, limits)
    path = None if dry_run else _write(project.root, found, any_test=model is not None)
    if as_json:
        print_json(
            {"found": [_plain(each) for each in found], "file": None if path is None else str(path)}
        )
    else:
        _print(found, limits, path)


def _print(found: Sequence[Found], limits: Mapping[str, float], path: Path | None) -> None:
    print_table([_cells(each) for each in found], _HEADER)
    for line in _remarks(found, limits):
        click.echo(encodable(line))
    if path is not None:
        click.echo(
            f"{len(found)} floor{'' if len(found) == 1 else 's'} written to {path}: review and commit it."
        )


def _plain(each: Found) -> dict[str, Any]:
    from msgspec import to_builtins  # noqa: PLC0415

    record = each.record
    names = {
        "test": record.test,
        "workload": record.workload_text,
        "strategy": record.strategy,
        "metric": each.metric,
    }
    return {**names, **to_builtins(each.noise)}


def _measured(root: Path, arguments: Sequence[str], n_sessions: int, n_pairs: int) -> list[Session]:
    from pytest_llmperf.commands.calibrating import enough, run_session  # noqa: PLC0415

    made: list[Session] = []
    while not enough(made, n_sessions, n_pairs):
        made.append(run_session(root, arguments))
        click.echo(
            f"session {len(made)} of {n_sessions}: {sum(map(len, made[-1].values()))} runs",
            err=True,
        )
    return made


def _limits(text: str) -> Mapping[str, float]:
    from pytest_llmperf.settings.limits import DEFAULT_LIMITS, parse_gate  # noqa: PLC0415

    return parse_gate(text) or DEFAULT_LIMITS


def _cells(each: Found) -> tuple[str, ...]:
    from pytest_llmperf.core.format import format_percent, format_value  # noqa: PLC0415

    noise, record = each.noise, each.record
    unit = next(metric.unit for metric in record.metrics if metric.name == each.metric)
    known = noise.autocorrelation is not None
    return (
        record.test,
        record.workload_text,
        record.strategy,
        each.metric,
        str(noise.sessions),
        f"{format_value(noise.low, unit)} to {format_value(noise.high, unit)}",
        format_percent(noise.spread, 2),
        f"{noise.false_alarms:.2%} (< {noise.at_most:.2%}) at {format_percent(noise.floor, 2)}",
        f"{noise.autocorrelation:+.2f} of {noise.pairs} pairs"
        if known
        else f"{noise.pairs} pairs are too few",
        format_percent(noise.proposed, 2),
    )


def _remarks(found: Sequence[Found], limits: Mapping[str, float]) -> list[str]:
    from pytest_llmperf.core.format import format_percent  # noqa: PLC0415

    below = [each for each in found if limits[each.metric] < each.noise.proposed]
    return [
        f"{each.metric} of {each.record.strategy}: the limit of {format_percent(limits[each.metric], 2)} is below what sessions "
        f"differ by without a change ({format_percent(each.noise.proposed, 2)}); a loss of that size stays undecided"
        for each in below
    ]


def _write(root: Path, found: Sequence[Found], *, any_test: bool) -> Path:
    from datetime import UTC, datetime  # noqa: PLC0415

    from pytest_llmperf.gate.calibration import write_calibrations  # noqa: PLC0415

    today = datetime.now(UTC).date()
    return write_calibrations(root, [each.calibrated(today, any_test=any_test) for each in found])
