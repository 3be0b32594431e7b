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
    from pytest_llmperf.commands.calibrating import Floor, Session
    from pytest_llmperf.core.verdicts.noise import Noise

_HEADER = (
    "test",
    "workload",
    "strategy",
    "metric",
    "sessions",
    "range",
    "spread",
    "between, within processes",
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
    help="Go on, up to twice the sessions, until there are so many pairs of repetitions.",
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

    For each metric: the spread between sessions; what single processes differ by apart from their
    repetitions; how often the gate would fail one of them by chance at its limit, given sessions
    such as these; the autocorrelation of pairs of repetitions inside one process, and the floor
    that one unchanged session in a thousand exceeds. The floors go to llmperf-calibration.toml with
    date, device, sessions and versions, to be reviewed and committed.
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
        arguments = list(pytest_args)
        if model is not None:
            file = test_file(Path(folder), model, strategy, engine, workload)
            arguments = [str(file), f"--rootdir={project.root}"]
        if budget is not None:
            arguments += [f"--llmperf-budget={budget}", "--llmperf-precision=0.001"]
        measured = _measured(Path.cwd(), arguments, sessions, pairs)
    floors = examine(measured, limits)
    path = None if dry_run else _write(project.root, floors, any_test=model is not None)
    _report(floors, limits, path, as_json=as_json)


def _report(
    floors: Sequence[Floor], limits: Mapping[str, float], path: Path | None, *, as_json: bool
) -> None:
    if as_json:
        _print_document(floors, path)
    else:
        _print(floors, limits)
        _print_file(path, len(floors))


def _print_document(floors: Sequence[Floor], path: Path | None) -> None:
    file_name = None if path is None else str(path)
    print_json({"found": list(map(_document, floors)), "file": file_name})


def _print(floors: Sequence[Floor], limits: Mapping[str, float]) -> None:
    print_table(list(map(_cells, floors)), _HEADER)
    for line in _remarks(floors, limits):
        click.echo(encodable(line))


def _print_file(path: Path | None, n_floors: int) -> None:
    if path is not None:
        floors = f"{n_floors} floor{'' if n_floors == 1 else 's'}"
        click.echo(f"{floors} written to {path}: review and commit it.")


def _document(floor: Floor) -> dict[str, Any]:
    from msgspec import to_builtins  # noqa: PLC0415

    record = floor.record
    names = {
        "test": record.test,
        "workload": record.workload_text,
        "strategy": record.strategy,
        "metric": floor.metric,
    }
    return {**names, **to_builtins(floor.noise)}


def _measured(root: Path, arguments: Sequence[str], n_sessions: int, n_pairs: int) -> list[Session]:
    from pytest_llmperf.commands.calibrating import enough, run_session  # noqa: PLC0415

    sessions: list[Session] = []
    while not enough(sessions, n_sessions, n_pairs):
        session = run_session(root, arguments)
        sessions.append(session)
        n_runs = sum(map(len, session.values()))
        click.echo(f"session {len(sessions)} of {n_sessions}: {n_runs} runs", err=True)
    return sessions


def _limits(text: str) -> Mapping[str, float]:
    from pytest_llmperf.settings.limits import DEFAULT_LIMITS, parse_gate  # noqa: PLC0415

    return parse_gate(text) or DEFAULT_LIMITS


def _cells(floor: Floor) -> tuple[str, ...]:
    from pytest_llmperf.core.format import format_percent, format_value  # noqa: PLC0415

    noise, record = floor.noise, floor.record
    unit = next(metric.unit for metric in record.metrics if metric.name == floor.metric)
    limit = format_percent(noise.floor, 2)
    return (
        record.test,
        record.workload_text,
        record.strategy,
        floor.metric,
        str(noise.sessions),
        f"{format_value(noise.low, unit)} to {format_value(noise.high, unit)}",
        format_percent(noise.spread, 2),
        f"{_share(noise.between)}, {_share(noise.within)}",
        f"{noise.false_alarms:.2%} (< {noise.at_most:.2%}) at {limit}",
        _autocorrelation(noise),
        format_percent(noise.proposed, 2),
    )


def _share(spread: float | None) -> str:
    from pytest_llmperf.core.format import MISSING, format_percent  # noqa: PLC0415

    return MISSING if spread is None else format_percent(spread, 2)


def _autocorrelation(noise: Noise) -> str:
    if noise.autocorrelation is None:
        return f"{noise.pairs} pairs are too few"
    return f"{noise.autocorrelation:+.2f} of {noise.pairs} pairs"


def _remarks(floors: Sequence[Floor], limits: Mapping[str, float]) -> list[str]:
    """What the shares are conditional on, and a line for each limit that sessions exceed."""
    exceeded = [floor for floor in floors if limits[floor.metric] < floor.noise.proposed]
    remarks = [_remark(floor, limits[floor.metric]) for floor in exceeded]
    return [*_conditions(floors), *_condition_of_pairs(floors), *remarks]


def _conditions(floors: Sequence[Floor]) -> list[str]:
    """Say that the shares know these sessions alone: a line for each number of them."""
    unseen = {floor.noise.sessions: floor.noise.unseen for floor in floors}
    return [
        f"false alarms are those of sessions such as these {n}: as many as {share:.0%} of all "
        "sessions may be unlike each of them (99 %), and more --sessions exclude more"
        for n, share in unseen.items()
    ]


def _condition_of_pairs(floors: Sequence[Floor]) -> list[str]:
    """Say what the autocorrelation is conditional on, where it is known."""
    if all(floor.noise.autocorrelation is None for floor in floors):
        return []
    condition = (
        "autocorrelation is that of pairs of repetitions inside one process, and conditional on "
        "it: the pairs of --llmperf-against are two fresh processes each"
    )
    return [condition]


def _remark(floor: Floor, limit: float) -> str:
    from pytest_llmperf.core.format import format_percent  # noqa: PLC0415

    return (
        f"{floor.metric} of {floor.record.strategy}: the limit of "
        f"{format_percent(limit, 2)} is below what sessions differ by without a change "
        f"({format_percent(floor.noise.proposed, 2)}); a loss of that size stays undecided"
    )


def _write(root: Path, floors: Sequence[Floor], *, any_test: bool) -> Path:
    from datetime import UTC, datetime  # noqa: PLC0415

    from pytest_llmperf.gate.calibration import write_calibrations  # noqa: PLC0415

    today = datetime.now(UTC).date()
    calibrated = [floor.calibrated(today, any_test=any_test) for floor in floors]
    return write_calibrations(root, calibrated)
