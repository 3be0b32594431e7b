"""Runs that were measured in turn: by `llm.compare`, and with --llmperf-against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pytest_llmperf.core.change import COUNTED, Change, ratio_fields, run_fields, stored_change
from pytest_llmperf.core.format import MISSING, format_interval, format_percent, format_value
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.report.html.blocks import Cell, Figure, Fold, Part, Row, Section, Table
from pytest_llmperf.report.html.head import base_name
from pytest_llmperf.report.html.runs import (
    headline,
    is_run,
    metric,
    search_words,
    split_test,
    strategy_name,
    text_row,
    unit,
    value,
)
from pytest_llmperf.report.html.strategies import verdict

_LEAD = "Measured in turn, in random order inside each pair, so that what drifts hits both."

_Pairs = tuple[tuple[float, float], ...]
"""Values of each pair: before (the other side), after (this one)."""


class Comparison(NamedTuple):
    """A metric that was measured side by side: its change from the other side to this, by pair.

    `note` says what the verdict was held against, or why there is none.
    """

    record: Record
    title: str
    change: Change
    pairs: _Pairs
    note: str

    @property
    def ratio(self) -> float | None:
        """The ratio this / other; None for a counted metric, whose pairs say it exactly."""
        return None if self.change.how == COUNTED else self.change.ratio


def section(records: Sequence[Record]) -> Section | None:
    """Return each comparison with its pairs. None where nothing was measured side by side."""
    comparisons = _comparisons(records)
    if not comparisons:
        return None
    parts = _parts(comparisons)
    return Section(id="side-by-side", title="Side by side", lead=_LEAD, parts=parts)


def _comparisons(records: Sequence[Record]) -> list[Comparison]:
    return [*_against(records), *_compared(records)]


def _parts(comparisons: Sequence[Comparison]) -> tuple[Part, ...]:
    overview = Part(title="Comparisons", blocks=(_table(comparisons),))
    return overview, *map(_part, comparisons)


def _against(records: Sequence[Record]) -> Iterator[Comparison]:
    """Yield each metric that --llmperf-against compared."""
    for record in records:
        against = record.extra.get("against")
        if isinstance(against, Mapping):
            base = base_name(against)
            for name, summary in against.get("metrics", {}).items():
                yield _against_comparison(record, base, name, summary)


def _against_comparison(
    record: Record, base: str, name: str, summary: Mapping[str, Any]
) -> Comparison:
    change = stored_change(record, name, summary)
    return Comparison(
        record=record,
        title=_title(record, base),
        change=change,
        pairs=tuple((float(before), float(after)) for before, after in summary.get("pairs", ())),
        note=change.reason or f"limit {format_percent(change.limit)}",
    )


def _compared(records: Sequence[Record]) -> Iterator[Comparison]:
    """Yield each comparison of `llm.compare`.

    Its two records share `paired_with`; the second was the reference's.
    """
    shared: dict[str, list[Record]] = {}
    for record in records:
        if record.paired_with and is_run(record):
            shared.setdefault(record.paired_with, []).append(record)
    for pair in shared.values():
        if len(pair) == 2:  # noqa: PLR2004 - the compared one and the reference
            run, reference = sorted(pair, key=lambda record: record.created)
            yield _run_comparison(run, reference)


def _run_comparison(run: Record, reference: Record) -> Comparison:
    name = headline(run)
    samples, reference_samples = run.samples.get(name, ()), reference.samples.get(name, ())
    pairs = tuple(zip(reference_samples, samples, strict=False))
    return Comparison(
        record=run,
        title=_title(run, strategy_name(reference)),
        change=_run_change(run, reference, pairs),
        pairs=pairs,
        note="compared in the test",
    )


def _run_change(run: Record, reference: Record, pairs: _Pairs) -> Change:
    """Return the change from the reference to the run; limits are those of the test itself."""
    name = headline(run)
    return Change(
        **run_fields(run),
        **_ratio_fields(pairs),
        metric=name,
        unit=unit(run, name),
        direction=_direction(run, name),
        before=value(reference, name),
        after=value(run, name),
        outcome=run.outcome,
        limit=0.0,
    )


def _direction(run: Record, name: str) -> str:
    measured = metric(run, name)
    return "" if measured is None else measured.direction


def _title(record: Record, base: str) -> str:
    return f"{split_test(record.test)[0]}, {strategy_name(record)} against {base}"


def _ratio_fields(pairs: _Pairs) -> dict[str, Any]:
    if _have_ratios(pairs):
        before, after = zip(*pairs, strict=True)
        return ratio_fields(stats.log_ratio_interval(after, before, paired=True))
    return {}


def _have_ratios(pairs: _Pairs) -> bool:
    return bool(pairs) and min(map(min, pairs)) > 0


def _table(comparisons: Iterable[Comparison]) -> Table:
    return Table(
        caption="Comparisons side by side",
        header=("comparison", "metric", "verdict", "ratio", "pairs"),
        rows=tuple(map(_row, comparisons)),
        first_number=3,
    )


def _row(comparison: Comparison) -> Row:
    record, change = comparison.record, comparison.change
    file = split_test(record.test)[1]
    return Row(
        cells=(
            Cell(comparison.title, f"{file}: {comparison.note}"),
            Cell(change.metric),
            verdict(change.outcome),
            _ratio_cell(comparison),
            Cell(str(len(comparison.pairs))),
        ),
        words=search_words(record),
        outcome=change.outcome,
    )


def _ratio_cell(comparison: Comparison) -> Cell:
    ratio = comparison.ratio
    if ratio is None:
        return Cell(MISSING)
    return Cell(format_value(ratio, "x"), _interval_text(ratio, comparison.change))


def _interval_text(ratio: float, change: Change) -> str:
    return format_interval(ratio, change.low, change.high, "x")


def _part(comparison: Comparison) -> Part:
    """Return the pairs as a picture and a table."""
    summary = f"{len(comparison.pairs)} pairs as a table"
    table = Fold(summary=summary, blocks=(_pairs_table(comparison),))
    ratios = [after / before for before, after in comparison.pairs if before > 0 and after > 0]
    blocks = (_figure(comparison, ratios), table) if ratios else (table,)
    words = search_words(comparison.record)
    return Part(title=comparison.title, blocks=blocks, words=words)


def _figure(comparison: Comparison, ratios: Sequence[float]) -> Figure:
    change, cell = comparison.change, _ratio_cell(comparison)
    data = {
        "ratios": [float(f"{ratio:.5g}") for ratio in ratios],
        "v": comparison.ratio,
        "low": change.low,
        "high": change.high,
    }
    return Figure(
        chart="pairs",
        title=f"{change.metric}, pair by pair",
        alt=f"{len(ratios)} pairs of {change.metric}; ratio {cell.text} {cell.sub}.",
        data=data,
    )


def _pairs_table(comparison: Comparison) -> Table:
    return Table(
        caption=comparison.title,
        header=("pair", "other", "this", "ratio"),
        rows=tuple(_pair_rows(comparison)),
        first_number=0,
    )


def _pair_rows(comparison: Comparison) -> Iterator[Row]:
    for position, (before, after) in enumerate(comparison.pairs, start=1):
        yield _pair_row(position, before, after, comparison.change.unit)


def _pair_row(position: int, before: float, after: float, unit: str) -> Row:
    values = (format_value(before, unit), format_value(after, unit))
    return text_row(str(position), *values, _pair_ratio_text(before, after))


def _pair_ratio_text(before: float, after: float) -> str:
    return format_value(after / before, "x") if before else MISSING
