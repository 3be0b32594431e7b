"""The tutorial, followed word for word.

Its files, its commands, what they print and their exit codes are those of the page. Every run does
it with scripted models and this environment. The nightly run does it as it stands, in a fresh
environment.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.page_script import (
    Command,
    Execution,
    File,
    Step,
    elapsed,
    follow,
    missing_lines,
    steps,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
LIMIT_S = 600.0
BUILT_SLOWLY = "time.sleep"
SCRIPTED_MODEL = 'model="scripted:weights=538MB,tpot=10ms", engine="scripted"'


def scripted(step: Step) -> Step:
    """The same step with a model that computes nothing, and nothing to install."""
    if isinstance(step, Command):
        line = re.sub(
            r"^python3 -m venv (\S+)$", r"mkdir -p \1/bin && touch \1/bin/activate", step.line
        )
        return replace(step, line=re.sub(r"^pip install .*$", "true", line))
    if step.name == "chatbot.py":
        tpot = "200ms" if BUILT_SLOWLY in step.text else "10ms"
        return replace(step, text=f'MODEL = "scripted:ttft=50ms,tpot={tpot}"\n')
    text = step.text.replace('model="smollm2-135m"', SCRIPTED_MODEL)
    return replace(
        step,
        text=text.replace(
            'model="chatbot:build"', 'model=__import__("chatbot").MODEL, engine="scripted"'
        ),
    )


def walked(script_steps: list[Step], tmp_path: Path, **environ: str) -> list[Execution]:
    """The steps, beginning in a folder that stands for the checkout."""
    checkout = tmp_path / "checkout"
    checkout.mkdir(exist_ok=True)
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "LLMPERF_", "GITHUB_"))
    }
    return follow(
        script_steps,
        checkout,
        plain | {"PATH": programs, "COLUMNS": "80"} | environ,
        deadline_s=3 * LIMIT_S,
    )


def as_the_page_says(executions: list[Execution]) -> None:
    wrong = [
        execution
        for execution in executions
        if execution.code != execution.command.code or missing_lines(execution)
    ]
    assert not wrong, "\n".join(
        f"$ {execution.command.line}\n{execution.output}\nnot printed: {missing_lines(execution)}"
        for execution in wrong
    )


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        "LLMPERF_CACHE": str(tmp_path / "cache"),
        "PYTEST_ADDOPTS": "-p no:benchmark -p no:xdist -p no:hypothesispytest --llmperf-in-process",
    }


@pytest.mark.nightly
def test_the_tutorial_does_what_it_says(tmp_path, environ):
    as_the_page_says(walked([scripted(step) for step in steps(PAGE)], tmp_path, **environ))


def test_a_step_that_is_missing_is_seen(tmp_path, environ):
    """Without its file a test cannot be run: the command ends with another code than the page's."""
    script_steps = [scripted(step) for step in steps(PAGE)]
    first = next(
        n
        for n, step in enumerate(script_steps)
        if isinstance(step, Command) and step.line.startswith("pytest")
    )
    lacking = [
        step
        for step in script_steps[: first + 1]
        if not (isinstance(step, File) and step.name == "test_model.py")
    ]
    with pytest.raises(AssertionError, match=r"file or directory not found: test_model\.py"):
        as_the_page_says(walked(lacking, tmp_path, **environ))


def test_a_line_that_is_not_printed_is_seen():
    """Other numbers are none; another word, and another order, are."""
    command = Command(
        line="pytest", page_lines=("2 passed in 3.01s", "…", "tok/s 20.9 ±14 %   58 MB  PASS")
    )
    output = "2 passed in 12.5s (0:00:12)\nmore\ntok/s 310 ±2 %  1.2 GB  {}\n"

    def missing(output: str) -> list[str]:
        return missing_lines(Execution(command=command, code=0, output=output, seconds=0))

    assert missing(output.format("PASS")) == ["2 passed in 3.01s"]
    output = output.replace(" (0:00:12)", "")
    assert missing(output.format("PASS")) == []
    assert missing(output.format("FAIL")) == [command.page_lines[2]]


@pytest.mark.skipif(
    "LLMPERF_NIGHTLY" not in os.environ,
    reason="installs torch and measures for minutes: make nightly runs it",
)
def test_the_tutorial_as_it_stands_takes_ten_minutes(tmp_path):
    """In a fresh environment, with the real models, on a machine that does nothing else."""
    shutil.copytree(
        ROOT,
        tmp_path / "checkout",
        ignore=shutil.ignore_patterns(".*", "build", "dist", "raw", "__pycache__"),
    )
    executions = walked(steps(PAGE), tmp_path)
    sys.stdout.writelines(
        f"{execution.seconds:6.1f} s  {execution.command.line}\n" for execution in executions
    )
    as_the_page_says(executions)
    assert elapsed(executions) <= LIMIT_S
