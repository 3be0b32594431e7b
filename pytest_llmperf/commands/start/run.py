"""`llmperf run MODEL`: measures a model without a test file."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_llmperf.commands.shared import example
from pytest_llmperf.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from pytest_llmperf.plugin.named_model import NamedModel

WORKLOADS = ("Decode", "Prefill")
_HOW = "Write Decode(batch=1, prompt_tokens=128, new_tokens=128) or Prefill(batch=1, …)."


@click.command(
    "run",
    short_help="Measure a model without a test file.",
    context_settings={"ignore_unknown_options": True},
    epilog=example(
        "llmperf run smollm2-135m",
        "llmperf run smollm2-135m --strategies bf16,int8 --agreement --html report.html",
        "llmperf run my_app.model:build --against HEAD~1",
    ),
)
@click.argument("model")
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- PYTEST ARGS]")
@click.option(
    "--strategies",
    metavar="STRATEGY,…",
    default="auto",
    show_default=True,
    help="Measure the model under each of them.",
)
@click.option("--engine", metavar="NAME", default="transformers", show_default=True)
@click.option(
    "--workload",
    default="Decode()",
    show_default=True,
    help="As a test writes it: Decode(…) or Prefill(…).",
)
@click.option(
    "--agreement", is_flag=True, help="Also compare the outputs with those of the fp32 model."
)
@click.option(
    "--against",
    metavar="REV|DIR|PYTHON",
    help="Measure side by side with the model at this git revision, in this folder, or under "
    "this interpreter.",
)
@click.option("--budget", metavar="SECONDS", help="Sampling time of each run (default: 20).")
@click.option("--html", metavar="FILE", help="Write the HTML report to this file.")
def run_command(
    model: str,
    pytest_args: tuple[str, ...],
    strategies: str,
    engine: str,
    workload: str,
    agreement: bool,
    against: str | None,
    budget: str | None,
    html: str | None,
) -> None:
    """Measure MODEL without a test file: the same records, tables and report.

    MODEL is a Hugging Face id, a folder, a GGUF file, a built-in name such as smollm2-135m, or
    'pkg.mod:build'. Every option of the pytest plugin may follow '--'. The exit code is pytest's.
    """
    named = _named_model(model, strategies, engine, workload, agreement=agreement)
    options = {"against": against, "budget": budget, "html": html}
    words = [f"--llmperf-{name}={value}" for name, value in options.items() if value]
    raise SystemExit(_run_pytest(named, [*words, *pytest_args]))


def _named_model(
    model: str, strategies: str, engine: str, workload: str, *, agreement: bool
) -> NamedModel:
    from pytest_llmperf import engines  # noqa: PLC0415
    from pytest_llmperf.plugin.named_model import NamedModel  # noqa: PLC0415
    from pytest_llmperf.strategies import parse  # noqa: PLC0415

    texts = tuple(filter(None, map(str.strip, strategies.split(","))))
    kind, keywords = parse_workload(workload)
    return NamedModel(
        model=model,
        strategies=tuple(parse(text).canonical for text in texts or ("auto",)),
        engine=engines.engine(engine).name,
        workload=kind,
        keywords=keywords,
        agreement=agreement,
    )


def parse_workload(text: str) -> tuple[str, dict[str, int]]:
    """Return the name and the keywords of a workload as a test writes it. Raises UsageError."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise UsageError(f"--workload {text!r} is not a workload: {error.msg}. {_HOW}") from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise UsageError(f"--workload {text!r} is not a workload. {_HOW}")
    name = call.func.id
    if name not in WORKLOADS:
        near = did_you_mean(name, WORKLOADS, otherwise=_HOW)
        raise UsageError(f"--workload {text!r}: {name!r} cannot be measured here.{near}")
    return name, {word.arg or "": _count(word, text) for word in call.keywords}


def _count(keyword: ast.keyword, text: str) -> int:
    value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
    if not isinstance(value, int) or isinstance(value, bool) or keyword.arg is None:
        raise UsageError(f"--workload {text!r}: whole numbers are needed. {_HOW}")
    return value


def _run_pytest(named: NamedModel, words: list[str]) -> int:
    from pytest_llmperf.plugin.named_model import PLUGIN, handed_over  # noqa: PLC0415

    command = [
        sys.executable,
        "-m",
        "pytest",
        f"-p{PLUGIN}",
        "-oaddopts=",
        "-opython_functions=test_model",
        "--noconftest",
        *words,
    ]
    finished = subprocess.run(  # noqa: S603 - our own test, with the user's options
        command, cwd=Path.cwd(), env=os.environ | handed_over(named), check=False
    )
    return finished.returncode
