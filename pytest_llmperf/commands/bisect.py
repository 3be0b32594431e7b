"""`llmperf bisect METRIC GOOD BAD -- pytest args`: the commit that made a metric worse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_llmperf.commands.shared import encodable, example, json_option, print_json

if TYPE_CHECKING:
    from pytest_llmperf.commands.bisecting import Found, Step

EXIT_RANGE = 3
EXIT_NOT_WORSE = 4


@click.command(
    "bisect",
    short_help="The first commit that made a metric worse.",
    epilog=example("llmperf bisect throughput v1.0 HEAD -- tests/test_speed.py"),
)
@click.argument("metric")
@click.argument("good")
@click.argument("bad")
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--limit", default="3%", show_default=True, help="How much worse than GOOD a commit may be."
)
@click.option(
    "--first-parent", is_flag=True, help="Walk merges only, not the commits that they brought."
)
@click.option(
    "--build",
    default="",
    metavar="COMMAND",
    help="Shell command that is run in the files of each commit first.",
)
@json_option
def bisect_command(
    metric: str,
    good: str,
    bad: str,
    pytest_args: tuple[str, ...],
    limit: str,
    first_parent: bool,
    build: str,
    as_json: bool,
) -> None:
    """Name the first commit after GOOD, up to BAD, that made METRIC worse.

    Each commit is checked out in a folder of its own and measured side by side with GOOD by what
    PYTEST_ARGS run (write them after '--'). Your checkout is left as it is. Commits that cannot be
    built or run, or that stay undecided, are skipped as 'git bisect skip' does.

    Exit code 0 if a commit is named, 3 if only a range can be, 4 if BAD is not worse than GOOD, 1
    if it cannot be measured.
    """
    from pytest_llmperf.commands.bisecting import Asked, bisect  # noqa: PLC0415
    from pytest_llmperf.settings.limits import parse_limits  # noqa: PLC0415

    ((name, share),) = parse_limits(f"{metric}:{limit}", "llmperf bisect").items()
    asked = Asked(
        metric=name,
        limit=share,
        good=good,
        bad=bad,
        pytest_args=pytest_args,
        first_parent=first_parent,
        build=build,
    )
    found = bisect(
        asked, Path.cwd(), lambda step: None if as_json else click.echo(encodable(_step_line(step)))
    )
    if as_json:
        print_json({"metric": name, "good": good, "bad": bad, "found": found})
    else:
        click.echo(encodable(_conclusion(found, name, good, bad)))
    raise SystemExit(_exit_code(found))


def _exit_code(found: Found) -> int:
    if found.first_bad is not None:
        return 0
    return EXIT_RANGE if found.suspects else EXIT_NOT_WORSE


def _step_line(step: Step) -> str:
    words = {"skip": "skipped"}
    return (
        f"{step.commit[:10]} {words.get(step.word, step.word)}: {_evidence(step)}  {step.subject}"
    )


def _evidence(step: Step) -> str:
    from pytest_llmperf.core.format import format_number, format_value  # noqa: PLC0415

    if step.ratio is None:
        return step.reason or step.outcome
    bounded = step.low is not None and step.high is not None
    interval = (
        f" [{format_number(step.low or 0.0)}, {format_number(step.high or 0.0)}]" if bounded else ""
    )
    evidence = "" if step.evidence is None else f", E = {step.evidence:.3g}"
    return (
        f"{step.outcome}, {format_value(step.ratio, 'x')}{interval}, {step.pairs} pairs{evidence}"
    )


def _conclusion(found: Found, metric: str, good: str, bad: str) -> str:
    if found.first_bad is not None:
        first = found.first_bad
        return (
            f"{first.commit} is the first commit that made {metric} worse than {good}'s: {first.subject}\n"
            f"{first.test}: {_evidence(first)}"
        )
    if not found.suspects:
        last = found.steps[-1]
        return f"{bad} is not seen to be worse than {good} ({_evidence(last)}): there is nothing to look for."
    skipped = {step.commit: step for step in found.steps if step.word == "skip"}
    lines = [
        f"  {commit}  {_evidence(skipped[commit]) if commit in skipped else 'bad'}"
        for commit in found.suspects
    ]
    return "\n".join(
        [
            f"The first commit that made {metric} worse is one of these, which could not be told apart:",
            *lines,
        ]
    )
