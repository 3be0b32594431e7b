"""`llmperf doctor`: what works on this machine, what will not, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from pytest_llmperf.commands.shared import (
    example,
    json_option,
    open_history,
    print_json,
    print_table,
    store_option,
)
from pytest_llmperf.errors import LlmperfError, UsageError, did_you_mean

if TYPE_CHECKING:
    from pytest_llmperf.commands.examination import Check, Status
    from pytest_llmperf.history.results import Series
    from pytest_llmperf.history.store import Store

_HEADER = ("area", "name", "status", "detail")


@click.command(
    "doctor",
    short_help="Say what works on this machine, what does not, and why.",
    epilog=example("llmperf doctor --engine scripted"),
)
@store_option
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="Exit with 1 unless tests can run on it."
)
@click.option(
    "--engine",
    "engines",
    metavar="NAME",
    multiple=True,
    help="Exit with 1 unless this engine is usable. May be given again.",
)
@json_option
def doctor_command(
    store: str | None, device: str | None, engines: tuple[str, ...], as_json: bool
) -> None:
    """Say which devices, engines, strategies, models and stores work here, which do not, and why.

    Exit code 1 if something that was asked for (--store, --device, --engine) does not work, else 0.
    """
    from pytest_llmperf.commands.examination import device_works, examine, look  # noqa: PLC0415

    machine, store_check = look(), _store_check(store)
    checks = [*examine(machine), store_check]
    failed = _failed_engines(engines, checks)
    if device is not None and not device_works(machine, device):
        failed.append(f"device {device!r}")
    if store is not None and store_check.status == "broken":
        failed.append(f"store {store!r}")
    if as_json:
        print_json({"checks": checks, "failed": failed})
    else:
        _print(checks, failed)
    if failed:
        raise SystemExit(1)


def _store_check(url: str | None) -> Check:
    from pytest_llmperf.history.problems import StoreMissing  # noqa: PLC0415

    try:
        with open_history(url) as store:
            return _history_check("ok", _contents(store))
    except StoreMissing as error:
        return _history_check("missing", str(error), "no earlier runs to compare with")
    except LlmperfError as error:
        return _history_check("broken", str(error), "records go to the spool, if at all")


def _history_check(status: Status, detail: str, affects: str = "") -> Check:
    from pytest_llmperf.commands.examination import Check  # noqa: PLC0415

    return Check(area="store", name="history", status=status, detail=detail, affects=affects)


def _contents(store: Store) -> str:
    return " ".join([f"{store.public_url}: {_counts(store.series())}", *store.notices])


def _counts(series: Sequence[Series]) -> str:
    n_records = sum(one_series.n for one_series in series)
    return f"{len(series)} series, {n_records} records"


def _failed_engines(names: Sequence[str], checks: Sequence[Check]) -> list[str]:
    known = _engine_statuses(checks)
    _require_engines(names, known)
    return [f"engine {name!r}" for name in names if known[name] != "ok"]


def _engine_statuses(checks: Sequence[Check]) -> dict[str, Status]:
    return {check.name: check.status for check in checks if check.area == "engine"}


def _require_engines(names: Sequence[str], known: Mapping[str, Status]) -> None:
    for name in names:
        _require_engine(name, known)


def _require_engine(name: str, known: Mapping[str, Status]) -> None:
    if name not in known:
        near = did_you_mean(name, known)
        raise UsageError(f"engine {name!r} is not known.{near} Engines: {', '.join(known)}.")


def _print(checks: Sequence[Check], failed: Sequence[str]) -> None:
    print_table(list(map(_cells, checks)), _HEADER)
    _print_affected(_affected(checks))
    _print_failed(failed)


def _cells(check: Check) -> tuple[str, ...]:
    return (check.area, check.name, check.status, check.detail)


def _print_failed(failed: Sequence[str]) -> None:
    if failed:
        click.echo(f"\nAsked for and not working: {', '.join(failed)}")


def _print_affected(lines: Sequence[str]) -> None:
    if lines:
        click.echo("\nWill not work here:")
    for line in lines:
        click.echo(line)


def _affected(checks: Sequence[Check]) -> list[str]:
    """What will not work and what to do; checks of one area with the same remedy share a line."""
    lines = []
    for (area, affects, remedy), names in _alike(checks).items():
        lines.append(f"  {area} {', '.join(names)}: {affects}")
        lines += _remedy_lines(remedy)
    return lines


def _remedy_lines(remedy: str) -> list[str]:
    return [f"    -> {remedy}"] if remedy else []


def _alike(checks: Sequence[Check]) -> dict[tuple[str, str, str], list[str]]:
    """Area, what is affected and the remedy -> the names of the checks."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for check in checks:
        if check.affects:
            names.setdefault((check.area, check.affects, check.remedy), []).append(check.name)
    return names
