"""Runs that were measured side by side, pair by pair: of `llm.compare`, and of --llmperf-against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pytest_llmperf.core.format import MISSING, format_interval, format_percent, format_value
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.report.html.blocks import Block, Cell, Figure, Fold, Part, Row, Section, Table
from pytest_llmperf.report.html.runs import headline, is_run, metric, named, split_test, words
from pytest_llmperf.report.html.strategies import verdict


class Side(NamedTuple):
    """A comparison: what it is of, its pairs (other, this), the ratio this / other with its interval, and the verdict."""

    record: Record
    title: str
    metric: str
    unit: str
    pairs: tuple[tuple[float, float], ...]
    ratio: tuple[float | None, float | None, float | None]
    outcome: str
    said: str


def section(records: Sequence[Record]) -> Section | None:
    """Each comparison with its pairs. None where nothing was measured side by side."""
    found = [*_against(records), *_compared(records)]
    if not found:
        return None
    return Section(
        id="side-by-side",
        title="Side by side",
        lead="Measured in turn, in random order inside each pair, so that what drifts hits both.",
        parts=(Part(title="Comparisons", blocks=(_table(found),)), *map(_part, found)),
    )


def _against(records: Sequence[Record]) -> list[Side]:
    found = []
    for record in records:
        kept = record.extra.get("against")
        if not isinstance(kept, Mapping):
            continue
        for name, each in kept.get("metrics", {}).items():
            ratio = each.get("ratio") or (None, None, None)
            title = f"{split_test(record.test)[0]}, {named(record)} against {kept.get('base', 'the base')}"
            outcome, said = str(each.get("outcome", "")), _said(each)
            pairs = tuple((float(a), float(b)) for a, b in each.get("pairs", ()))
            found.append(
                Side(
                    record,
                    title,
                    name,
                    str(each.get("unit", "")),
                    pairs,
                    tuple(ratio[:3]),
                    outcome,
                    said,
                )
            )
    return found


def _said(kept: Mapping[str, Any]) -> str:
    limit = kept.get("limit")
    return str(kept.get("reason") or "") or (
        f"limit {format_percent(limit)}" if isinstance(limit, float) else ""
    )


def _compared(records: Sequence[Record]) -> list[Side]:
    """Both records of a comparison share `paired_with`; the second was the reference's."""
    shared: dict[str, list[Record]] = {}
    for record in records:
        if record.paired_with and is_run(record):
            shared.setdefault(record.paired_with, []).append(record)
    found = []
    for ours, theirs in (
        sorted(two, key=lambda r: r.created)
        for two in shared.values()
        if len(two) == 2  # noqa: PLR2004
    ):
        name = headline(ours)
        pairs = tuple(zip(theirs.samples.get(name, ()), ours.samples.get(name, ()), strict=False))
        unit = getattr(metric(ours, name), "unit", "")
        title = f"{split_test(ours.test)[0]}, {named(ours)} against {named(theirs)}"
        found.append(
            Side(
                ours, title, name, unit, pairs, _ratio(pairs), ours.outcome, "compared in the test"
            )
        )
    return found


def _ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float | None, float | None, float | None]:
    if not pairs or min(map(min, pairs)) <= 0:
        return None, None, None
    found = stats.log_ratio_interval([b for _, b in pairs], [a for a, _ in pairs], paired=True)
    ends = (math.exp(end) if math.isfinite(end) else None for end in (found.low, found.high))
    return (math.exp(found.center), *ends)  # type: ignore[return-value]  # three of them


def _table(found: Sequence[Side]) -> Table:
    return Table(
        caption="Comparisons side by side",
        header=("comparison", "metric", "verdict", "ratio", "pairs"),
        rows=tuple(
            Row(
                cells=(
                    Cell(side.title, f"{split_test(side.record.test)[1]}: {side.said}"),
                    Cell(side.metric),
                    verdict(side.outcome),
                    _ratio_cell(side),
                    Cell(str(len(side.pairs))),
                ),
                words=words(side.record),
                outcome=side.outcome,
            )
            for side in found
        ),
        first_number=3,
    )


def _ratio_cell(side: Side) -> Cell:
    value, low, high = side.ratio
    return (
        Cell(MISSING)
        if value is None
        else Cell(format_value(value, "x"), format_interval(value, low, high, "x"))
    )


def _part(side: Side) -> Part:
    """The pairs as a picture and a table."""
    ratios = [b / a for a, b in side.pairs if a > 0 and b > 0]
    blocks: list[Block] = [
        Fold(summary=f"{len(side.pairs)} pairs as a table", blocks=(_pairs(side),))
    ]
    if ratios:
        value, low, high = side.ratio
        data = {"ratios": [float(f"{r:.5g}") for r in ratios], "v": value, "low": low, "high": high}
        alt = f"{len(ratios)} pairs of {side.metric}; ratio {_ratio_cell(side).text} {_ratio_cell(side).sub}."
        blocks.insert(
            0, Figure(chart="pairs", title=f"{side.metric}, pair by pair", alt=alt, data=data)
        )
    return Part(title=side.title, blocks=tuple(blocks), words=words(side.record))


def _pairs(side: Side) -> Table:
    rows = tuple(
        Row(
            cells=(
                Cell(str(at)),
                Cell(format_value(a, side.unit)),
                Cell(format_value(b, side.unit)),
                Cell(format_value(b / a, "x") if a else MISSING),
            ),
        )
        for at, (a, b) in enumerate(side.pairs, start=1)
    )
    return Table(
        caption=side.title, header=("pair", "other", "this", "ratio"), rows=rows, first_number=0
    )
