"""`llmperf init`: a first test, the options of the project, and a job for CI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_llmperf.commands.shared import encodable, example, project_root
from pytest_llmperf.errors import UsageError

if TYPE_CHECKING:
    from pytest_llmperf.commands.start.surroundings import Model, Surroundings

OPTIONS = {"llmperf_budget": "20", "llmperf_precision": "1"}
"""What a project sets first: seconds of sampling, and the interval in percent that ends it."""

FIRST_RUN = ("--llmperf-budget=5", "--llmperf-allow-load")
"""The first run shows numbers soon, beside other programs too; it is marked then."""


@click.command(
    "init",
    short_help="Write a first test, options and a CI job; run the test.",
    epilog=example("llmperf init", "llmperf init --model arch:small-llama --ci github"),
)
@click.option("--model", help="Model to measure (default: a server or folder that is found here).")
@click.option("--engine", default="transformers", show_default=True, help="Engine of --model.")
@click.option("--url", help="URL of a running server that serves --model.")
@click.option(
    "--ci",
    "forge",
    type=click.Choice(["github", "gitlab", "none"]),
    help="Write a job for it (default: where the project is hosted).",
)
@click.option(
    "--test",
    "test_name",
    default="tests/test_llm_performance.py",
    show_default=True,
    metavar="FILE",
    help="File of the test that is written.",
)
@click.option("--no-run", is_flag=True, help="Write the files, and do not run the test.")
def init_command(
    model: str | None,
    engine: str,
    url: str | None,
    forge: str | None,
    test_name: str,
    no_run: bool,
) -> None:
    """Write a first test, the options of the project and a CI job; then run the test once.

    What is measured is --model, else what is found: a server that runs on this machine, a model in
    the project, the built-in model, random weights. No file that is there is overwritten.
    """
    from pytest_llmperf.commands.start.surroundings import look_around  # noqa: PLC0415

    root = project_root()
    surroundings = look_around(root, _asked_for(model, engine, url), forge)
    for line in (*_findings(surroundings), *_write(root, surroundings, test_name)):
        click.echo(encodable(line))
    if surroundings.lacking:
        click.echo(encodable(f"Next: {surroundings.lacking}, then: pytest {test_name}"))
        return
    exit_code = 0 if no_run else _run_once(root, test_name)
    click.echo(encodable(_next_step(test_name, exit_code, no_run=no_run)))
    raise SystemExit(exit_code)


def _asked_for(model: str | None, engine: str, url: str | None) -> Model | None:
    """Return the model that the command line names, None where it names none."""
    from pytest_llmperf import engines  # noqa: PLC0415
    from pytest_llmperf.commands.start.surroundings import Model, served_model  # noqa: PLC0415

    if url:
        served = served_model(url)
        name = model or (served.name if served else None)
        if name is None:
            raise UsageError(
                f"--url {url}: {url}/models does not answer with a model. Start the server, or "
                "name its model with --model."
            )
        return Model(name=name, engine="server", url=url, why="--url names its server")
    if model is None:
        return None
    return Model(name=model, engine=engines.engine(engine).name, why="--model names it")


def _findings(surroundings: Surroundings) -> list[str]:
    model, gpus = surroundings.model, surroundings.gpus
    hosts = {"github": "GitHub", "gitlab": "GitLab"}
    return [
        f"model   {model.name} on the engine {model.engine} ({model.why})",
        f"device  {', '.join(gpus) if gpus else 'CPU: the driver shows no NVIDIA GPU'}",
        f"CI      {hosts.get(surroundings.forge, 'none was found; --ci github or --ci gitlab')}",
    ]


def _write(root: Path, surroundings: Surroundings, test_name: str) -> list[str]:
    """Write what is not there yet, and return a line for each file."""
    from pytest_llmperf.commands.start import files  # noqa: PLC0415
    from pytest_llmperf.commands.start.ini import add_options  # noqa: PLC0415

    lines = [_new_file(root, root / test_name, files.test_text(surroundings.model))]
    job = files.job_file(root, surroundings.forge)
    if job is not None:
        lines.append(_new_file(root, job, files.job_text(surroundings, test_name)))
        if job.name == files.GITLAB_BESIDE:
            lines.append(f"        add it to {files.GITLAB} with 'include: {job.name}'")
    changed = (add_options(root, OPTIONS), files.ignore_store(root))
    return [*lines, *(f"changed {path.relative_to(root)}" for path in changed if path is not None)]


def _new_file(root: Path, path: Path, text: str) -> str:
    if path.exists():
        return f"kept    {path.relative_to(root)}: it is there already"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return f"wrote   {path.relative_to(root)}"


def _run_once(root: Path, test_name: str) -> int:
    command = [sys.executable, "-m", "pytest", test_name, *FIRST_RUN]
    return subprocess.run(command, cwd=root, check=False).returncode  # noqa: S603 - our files


def _next_step(test_name: str, exit_code: int, *, no_run: bool) -> str:
    if no_run:
        return f"Next: pytest {test_name}"
    if exit_code:
        return "Next: 'llmperf doctor' says what works on this machine."
    return (
        f"Next: commit these files, then 'llmperf record 8 -- {test_name}' records what "
        "'pytest --llmperf-gate' holds later sessions against."
    )
