"""`llmperf audit`: tests that no configured lane ever runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_llmperf.commands.shared import encodable, example, json_option, print_json, print_table

if TYPE_CHECKING:
    from pytest_llmperf.commands.auditing import Audit, Lane, Orphan

_HEADER = ("lane", "GPUs", "tests that run")


@click.command(
    "audit",
    short_help="List the tests that no configured lane ever runs.",
    epilog=example("llmperf audit --json"),
)
@json_option
def audit_command(as_json: bool) -> None:
    """List the tests that no configured lane ever runs, each with every lane's reason.

    A lane is a line of the ini file's `llmperf_lanes`: NAME: [GPUS] ARGUMENTS, where ARGUMENTS are
    pytest's and GPUS are those of the machine that the lane runs on, for example [2x141GB:NVIDIA
    H200:9.0]; without them it has none. Tests are collected once for each lane, and none is run.
    Exit code 1 if there is such a test, or a lane cannot be collected.
    """
    from pytest_llmperf.commands.auditing import audit, lanes_of  # noqa: PLC0415
    from pytest_llmperf.plugin.gpu_tests import LANES  # noqa: PLC0415
    from pytest_llmperf.settings.project import find_project  # noqa: PLC0415

    project = find_project(Path.cwd())
    lanes = lanes_of(project.ini.get(LANES))
    result = audit(lanes, project.root)
    if as_json:
        print_json({"lanes": lanes, "audit": result})
    else:
        _print_lanes(lanes, result)
        _print_orphans(result)
    if result.orphans:
        raise SystemExit(1)


def _print_lanes(lanes: tuple[Lane, ...], result: Audit) -> None:
    rows = [_lane_cells(lane, result) for lane in lanes]
    print_table(rows, _HEADER)


def _lane_cells(lane: Lane, result: Audit) -> tuple[str, str, str]:
    return (lane.name, _gpus(lane), f"{result.lanes[lane.name]} of {result.tests}")


def _gpus(lane: Lane) -> str:
    return "no GPU" if lane.gpus == "0" else lane.gpus


def _print_orphans(result: Audit) -> None:
    if not result.orphans:
        click.echo("Every test runs in at least one lane.")
        return
    click.echo(_head(result))
    for orphan in result.orphans:
        _print_orphan(orphan)


def _head(result: Audit) -> str:
    return f"\n{len(result.orphans)} of {result.tests} tests run in no lane:"


def _print_orphan(orphan: Orphan) -> None:
    click.echo(encodable(f"  {orphan.test}"))
    for name, reason in orphan.reasons.items():
        _print_reason(name, reason)


def _print_reason(lane: str, reason: str) -> None:
    click.echo(encodable(f"    {lane}: {reason}"))
