"""Times of a group: their distributions, over the repetitions, and along the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_llmperf.core.format import MISSING, format_value, scale_of
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.report.html.blocks import Block, Cell, Figure, Fold, Note, Part, Row, Table
from pytest_llmperf.report.html.runs import Group, named, shown, words

_KINDS = (("ttft", "TTFT"), ("tpot", "TPOT"), ("latency", "End to end"))
_DRAWN = 400
_PERCENTILES = ("p50", "p90", "p95", "p99", "max")


def parts(group: Group) -> list[Part]:
    """One part; empty where no run has times."""
    timed = [run for run in group.runs if any(run.samples.get(kind) for kind, _ in _KINDS)]
    if not timed:
        return [
            Part(
                title="Latency",
                blocks=(Note("The repetitions' times of these runs were not recorded.", "quiet"),),
            )
        ]
    blocks: list[Block] = [
        figure
        for kind, title in _KINDS
        if (figure := _distribution(timed, kind, title)) is not None
    ]
    blocks += _along_output(group) if any(run.samples.get("tpot") for run in timed) else []
    blocks += [
        figure
        for kind, title in _KINDS[:2]
        if (figure := _over_time(timed, kind, title)) is not None
    ]
    blocks.sort(key=lambda block: isinstance(block, Note))
    table = Fold(summary="Percentiles as a table", blocks=(_table(group),))
    return [
        Part(
            title="Latency",
            blocks=(*blocks, table),
            lead="One dot is one repetition (under load one request); the bar is the median.",
        ),
    ]


def _distribution(timed: Sequence[Record], kind: str, title: str) -> Figure | None:
    rows = [(named(run), run.samples[kind]) for run in timed if run.samples.get(kind)]
    if not rows:
        return None
    size, unit = scale_of(stats.median([s for _, samples in rows for s in samples]), "s")
    medians = ", ".join(
        f"{name} {format_value(stats.median(samples), 's')}" for name, samples in rows
    )
    return Figure(
        chart="strips",
        title=title,
        alt=f"{title} of each repetition, by strategy. Medians: {medians}.",
        data={
            "rows": [_values(name, samples, size) for name, samples in rows],
            "x": f"{title} ({unit})",
        },
    )


def _over_time(timed: Sequence[Record], kind: str, title: str) -> Figure | None:
    rows = [(named(run), run.samples[kind]) for run in timed if len(run.samples.get(kind, ())) > 1]
    if not rows:
        return None
    size, unit = scale_of(stats.median([s for _, samples in rows for s in samples]), "s")
    what = f"{title} over the repetitions"
    if kind == "tpot":
        what = "TPOT (the mean ITL of a repetition) over the repetitions"
    return Figure(
        chart="lines",
        title=what,
        alt=f"{what}, one line a strategy: {', '.join(name for name, _ in rows)}.",
        data={
            "rows": [_values(name, samples, size) for name, samples in rows],
            "x": "repetition",
            "y": f"{title} ({unit})",
        },
    )


def _along_output(group: Group) -> list[Block]:
    """Median ITL at each stretch of the output, where records have it."""
    kept = [(named(run), found) for run in group.runs if (found := _profile(run)) is not None]
    if not kept:
        return [
            Note(
                "ITL along the output was not recorded; the percentiles of ITL are in the table.",
                "quiet",
            )
        ]
    size, unit = scale_of(stats.median([s for _, (_, values) in kept for s in values]), "s")
    rows = [{**_values(name, values, size), "at": tokens} for name, (tokens, values) in kept]
    return [
        Figure(
            chart="lines",
            title="ITL along the output",
            alt=f"Median gap before each output token, one line a strategy: {', '.join(name for name, _ in kept)}.",
            data={"rows": rows, "x": "output token", "y": f"ITL ({unit})"},
        ),
    ]


def _profile(run: Record) -> tuple[list[int], list[float]] | None:
    kept = run.extra.get("itl_by_position")
    if (
        not isinstance(kept, dict)
        or not kept.get("s")
        or len(kept["s"]) != len(kept.get("token", ()))
    ):
        return None
    return list(kept["token"]), list(kept["s"])


def _values(name: str, samples: Sequence[float], size: float) -> dict[str, Any]:
    """The samples in a figure's unit.

    Of many, evenly spaced ones with their numbers: a picture has no room for more.
    """
    n = len(samples)
    kept = range(n) if n <= _DRAWN else [at * n // _DRAWN for at in range(_DRAWN)]
    row: dict[str, Any] = {
        "name": name,
        "values": [float(f"{samples[at] / size:.5g}") for at in kept],
    }
    return row if n <= _DRAWN else row | {"at": [at + 1 for at in kept]}


def _table(group: Group) -> Table:
    kinds = (*_KINDS[:2], ("itl", "ITL"), _KINDS[2])
    rows = []
    for run in group.runs:
        for kind, title in kinds:
            cells = [Cell(shown(run, f"{kind}.{each}")) for each in _PERCENTILES]
            if any(cell.text != MISSING for cell in cells):
                rows.append(
                    Row(
                        cells=(Cell(named(run)), Cell(title), *cells),
                        words=words(run),
                        outcome=run.outcome,
                    )
                )
    return Table(
        caption=f"Percentiles of {group.model}, {group.workload}",
        header=("strategy", "time", *_PERCENTILES),
        rows=tuple(rows),
        first_number=2,
        note=f"{MISSING}: a percentile q is refused below 2/(1 - q) samples.",
    )
