"""`llmperf advise`: the fastest stored strategy that meets some limits, and its rivals."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from pytest_llmperf.commands.shared import (
    encodable,
    example,
    json_option,
    open_history,
    print_json,
    print_table,
    store_option,
)

if TYPE_CHECKING:
    from pytest_llmperf.core.advice import Advice
    from pytest_llmperf.history.advice import Candidates


@click.command(
    "advise",
    short_help="Recommend the fastest stored strategy within some limits.",
    epilog=example("llmperf advise --memory 8GB"),
)
@click.option("--memory", metavar="SIZE", help="At most so much memory, such as 8GB.")
@click.option(
    "--top1",
    metavar="SHARE",
    help="At least this share of the reference's first choices, such as 0.98.",
)
@click.option(
    "--perplexity",
    metavar="RATIO",
    help="At most this perplexity over the reference's, such as +1%.",
)
@click.option(
    "--ttft", metavar="TIME", help="At most this median time to the first token, such as 200ms."
)
@click.option("--model", metavar="TEXT", help="Of several stored models, this one.")
@click.option(
    "--environment",
    metavar="TEXT",
    help="Of several stored environments, this one (a key, or a part of its text).",
)
@click.option("--workload", metavar="TEXT", help="Of several stored workloads, this one.")
@click.option(
    "--agreement",
    metavar="TEXT",
    help="Of several stored agreements (prompts, length, reference), this one.",
)
@store_option
@json_option
def advise_command(
    memory: str | None,
    top1: str | None,
    perplexity: str | None,
    ttft: str | None,
    model: str | None,
    environment: str | None,
    workload: str | None,
    agreement: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Recommend a strategy: the fastest within the limits, and the front of the others.

    The front is that of speed, memory and quality. Everything comes from stored runs: what was not
    measured is named and not compared. Exit code 1 if no strategy meets the limits.
    """
    from pytest_llmperf.core.advice import advise  # noqa: PLC0415
    from pytest_llmperf.history.advice import Selection, find  # noqa: PLC0415

    limits = _limits(memory=memory, top1=top1, perplexity=perplexity, ttft=ttft)
    with open_history(store) as opened:
        selection = Selection(
            model=model, environment=environment, workload=workload, agreement=agreement
        )
        candidates = find(opened, selection)
        store_name = opened.public_url
    advice = advise(candidates.choices, limits)
    if as_json:
        _print_document(candidates, advice, limits, store_name)
    else:
        _print_advice(candidates, advice, limits)
    if advice.fastest is None:
        raise SystemExit(1)


def _limits(**texts: str | None) -> dict[str, float]:
    readers = _readers()
    return {axis: readers[axis](text) for axis, text in texts.items() if text is not None}


def _readers() -> dict[str, Callable[[str], float]]:
    """What reads the limit of each axis."""
    from pytest_llmperf.core import amounts  # noqa: PLC0415

    return {
        "memory": amounts.size_bytes,
        "top1": amounts.share,
        "perplexity": amounts.ratio,
        "ttft": amounts.duration_s,
    }


def _print_document(
    candidates: Candidates, advice: Advice, limits: dict[str, float], store_name: str
) -> None:
    from msgspec import to_builtins  # noqa: PLC0415

    head = {"store": store_name, "limits": limits}
    print_json({**head, **to_builtins(candidates), **to_builtins(advice)})


def _print_advice(candidates: Candidates, advice: Advice, limits: dict[str, float]) -> None:
    _print_origin(candidates)
    _print_strategies(candidates, advice)
    _print_sentences(candidates, advice, limits)


def _print_strategies(candidates: Candidates, advice: Advice) -> None:
    from pytest_llmperf.report.advice import table  # noqa: PLC0415

    header, rows = table(advice, candidates.choices)
    print_table(rows, header)


def _print_sentences(candidates: Candidates, advice: Advice, limits: dict[str, float]) -> None:
    from pytest_llmperf.report.advice import sentences  # noqa: PLC0415

    lines = sentences(advice, candidates.choices, limits)
    click.echo("\n" + "\n".join(map(encodable, lines)))


def _print_origin(candidates: Candidates) -> None:
    """What was measured where, and what memory and quality mean."""
    click.echo(encodable(_what_was_measured(candidates)))
    click.echo(encodable(_meaning_of_axes(candidates)) + "\n")


def _what_was_measured(candidates: Candidates) -> str:
    return f"{candidates.model} on {candidates.environment}: {candidates.workload}"


def _meaning_of_axes(candidates: Candidates) -> str:
    agreement = candidates.agreement or "no agreement is stored"
    return f"memory: {candidates.memory}; quality: {agreement}"
