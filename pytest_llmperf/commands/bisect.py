"""`llmperf bisect METRIC GOOD BAD -- pytest args`: the commit that made a metric worse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_llmperf.commands.shared import encodable, example, json_option, print_json

if TYPE_CHECKING:
    from pytest_llmperf.commands.bisecting import Bisection, Search, Step

EXIT_RANGE = 3
EXIT_NOT_WORSE = 4


@click.command(
    "bisect",
    short_help="Find the first commit that made a metric worse.",
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
    from pytest_llmperf.commands.bisecting import Search, bisect  # noqa: PLC0415
    from pytest_llmperf.settings.limits import parse_limits  # noqa: PLC0415

    ((name, share),) = parse_limits(f"{metric}:{limit}", "llmperf bisect").items()
    search = Search(
        metric=name,
        limit=share,
        good=good,
        bad=bad,
        pytest_args=pytest_args,
        first_parent=first_parent,
        build=build,
    )
    result = bisect(search, Path.cwd(), _ignore if as_json else _print_step)
    if as_json:
        print_json({"metric": name, "good": good, "bad": bad, "found": result})
    else:
        for line in _conclusion(result, search):
            click.echo(encodable(line))
    raise SystemExit(_exit_code(result))


def _ignore(step: Step) -> None:
    """Print nothing: the document has every step."""


def _print_step(step: Step) -> None:
    click.echo(encodable(_step_line(step)))


def _step_line(step: Step) -> str:
    return f"{step.commit[:10]} {_participle(step)}: {_evidence(step)}  {step.subject}"


def _participle(step: Step) -> str:
    return "skipped" if step.word == "skip" else step.word


def _exit_code(result: Bisection) -> int:
    if result.first_bad is not None:
        return 0
    return EXIT_RANGE if result.suspects else EXIT_NOT_WORSE


def _evidence(step: Step) -> str:
    from pytest_llmperf.core.format import format_value  # noqa: PLC0415
    from pytest_llmperf.report.changes import interval_text  # noqa: PLC0415

    if step.ratio is None:
        return step.reason or step.outcome
    ratio = f"{format_value(step.ratio, 'x')} {interval_text(step.low, step.high)}".rstrip()
    return f"{step.outcome}, {ratio}, {step.pairs} pairs{_e_value(step.evidence)}"


def _e_value(evidence: float | None) -> str:
    return "" if evidence is None else f", E = {evidence:.3g}"


def _conclusion(result: Bisection, search: Search) -> list[str]:
    """Return what was found, line by line."""
    if result.first_bad is not None:
        return _first_bad(result.first_bad, search)
    if result.suspects:
        return _range(result, search)
    return [_not_worse(result, search)]


def _first_bad(step: Step, search: Search) -> list[str]:
    head = f"{step.commit} is the first commit that made {search.metric} worse"
    return [f"{head} than {search.good}'s: {step.subject}", _test_line(step)]


def _test_line(step: Step) -> str:
    return f"{step.test}: {_evidence(step)}"


def _not_worse(result: Bisection, search: Search) -> str:
    return (
        f"{search.bad} is not seen to be worse than {search.good} "
        f"({_evidence(result.steps[-1])}): there is nothing to look for."
    )


def _range(result: Bisection, search: Search) -> list[str]:
    head = f"The first commit that made {search.metric} worse is one of these"
    return [f"{head}, which could not be told apart:", *_suspect_lines(result)]


def _suspect_lines(result: Bisection) -> list[str]:
    """The commits that could be the first bad one, each with why it was skipped, or bad."""
    skipped = _why_skipped(result.steps)
    return [f"  {commit}  {skipped.get(commit, 'bad')}" for commit in result.suspects]


def _why_skipped(steps: Sequence[Step]) -> dict[str, str]:
    return {step.commit: _evidence(step) for step in steps if step.word == "skip"}
