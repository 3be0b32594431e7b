"""A group's strategies side by side: figures with intervals, ratios to the reference, verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pytest_llmperf.core.format import MISSING, format_interval, format_value
from pytest_llmperf.report.html import latency, tradeoffs, usage
from pytest_llmperf.report.html.answers import holds, interval
from pytest_llmperf.report.html.blocks import Block, Cell, Figure, Note, Part, Row, Section, Table
from pytest_llmperf.report.html.groups import MEMORY, TOP1, GroupView, Ratio, Standing
from pytest_llmperf.report.html.runs import plural, record_row, value_text

_TIMES = (
    ("ttft.p50", "TTFT p50"),
    ("ttft.p95", "TTFT p95"),
    ("tpot.p50", "TPOT p50"),
    ("itl.p99", "ITL p99"),
)
_NO_REFERENCE = "There is no run of a reference to hold the others against."
_RULE_TEXTS = {True: ("rule holds", ""), False: ("rule does not hold", "bad"), None: ("", "")}
"""Text and tone of a top-1, by whether the rule of its agreement holds."""
_FRONT_NAMES = {MEMORY: "memory", TOP1: "agreement"}
_TONES = {
    "FAIL": "bad",
    "ERROR": "bad",
    "INVALID": "bad",
    "PASS": "good",
    "RECORDED": "quiet",
    "recorded": "quiet",
}


class _Column(NamedTuple):
    """A column of numbers, its cells in the order of the strategies."""

    title: str
    cells: list[Cell]

    @property
    def is_empty(self) -> bool:
        """Whether it has no number at all."""
        return all(cell.text == MISSING for cell in self.cells)


def section(group: GroupView, place: str, position: int) -> Section:
    """Return everything of one model, workload and environment.

    `place` names the environment, `position` numbers the group on the page.
    """
    return Section(
        id=f"group-{position}",
        title=group.title,
        lead=f"On {place}. {_count_text(group)}",
        parts=_parts(group),
    )


def _parts(group: GroupView) -> tuple[Part, ...]:
    table = Part(title="Strategies", blocks=(_table(group),))
    return table, *_trade_parts(group), *_hardware_parts(group)


def _hardware_parts(group: GroupView) -> list[Part]:
    return [*latency.parts(group), *usage.parts(group)]


def verdict(outcome: str) -> Cell:
    """Return an outcome as a cell."""
    text = outcome.lower() if outcome.upper() == "RECORDED" else outcome
    return Cell(text, "", _TONES.get(outcome, "warn"))


def _count_text(group: GroupView) -> str:
    count = plural(len(group.standings), "strategy")
    return f"{count}, each by its newest run.{_older_runs_text(group)}"


def _older_runs_text(group: GroupView) -> str:
    if not group.n_other_runs:
        return ""
    others = plural(group.n_other_runs, "other run")
    return f" {others} of the same strategies: see all runs."


def _trade_parts(group: GroupView) -> list[Part]:
    if group.is_contest:
        blocks = (*tradeoffs.figures(group), *_ratio_blocks(group))
        return [Part(title="What each strategy buys", blocks=blocks)]
    return []


def _table(group: GroupView) -> Table:
    columns = _columns(group)
    filled = [column for column in columns if not column.is_empty]
    empty_titles = [column.title for column in columns if column.is_empty]
    return Table(
        caption=f"Strategies of {group.model}, {group.workload}",
        header=("strategy", "its test", *(column.title for column in filled)),
        rows=_rows(group, filled),
        first_number=2,
        note=_note(group, empty_titles),
    )


def _rows(group: GroupView, columns: Sequence[_Column]) -> tuple[Row, ...]:
    row = _contest_row if group.is_contest else _plain_row
    return tuple(map(row, group.standings, _cells_by_strategy(columns)))


def _cells_by_strategy(columns: Sequence[_Column]) -> Iterable[tuple[Cell, ...]]:
    return zip(*(column.cells for column in columns), strict=True)


def _columns(group: GroupView) -> list[_Column]:
    """Return every column of numbers that there could be."""
    return [
        _speed_column(group),
        _ratio_column(group),
        *(_metric_column(group, title, name) for name, title in _TIMES),
        _Column("memory", [_memory_cell(standing) for standing in group.standings]),
        _metric_column(group, "weights", "memory.weights"),
        _metric_column(group, "MBU", "mbu", digits=2),
        _metric_column(group, "J/token", "energy.per_token"),
        _Column("top-1", [_top1_cell(standing) for standing in group.standings]),
    ]


def _speed_column(group: GroupView) -> _Column:
    title = "prompt speed" if group.is_prefill else "speed"
    return _Column(
        title, [Cell(standing.speed_text, standing.interval_text) for standing in group.standings]
    )


def _ratio_column(group: GroupView) -> _Column:
    title = f"over {group.reference}" if group.reference else "ratio"
    return _Column(title, [_ratio_cell(standing, group.reference) for standing in group.standings])


def _metric_column(group: GroupView, title: str, name: str, digits: int = 3) -> _Column:
    return _Column(title, [Cell(value_text(run, name, digits)) for run in group.runs])


def _note(group: GroupView, empty_titles: Sequence[str]) -> str:
    return " ".join(_note_sentences(group, empty_titles))


def _note_sentences(group: GroupView, empty_titles: Sequence[str]) -> Iterator[str]:
    yield "Intervals are 99 %."
    if group.is_contest:
        yield "● is on a front of the pictures below."
    if _has_paired_ratio(group):
        yield "⇄: in pairs that were measured in turn."
    if empty_titles:
        yield _missing_text(empty_titles)


def _has_paired_ratio(group: GroupView) -> bool:
    ratios = (standing.ratio for standing in group.standings)
    return any(ratio is not None and ratio.paired for ratio in ratios)


def _missing_text(titles: Sequence[str]) -> str:
    return f"No figures for {', '.join(titles)}: not measurable here, or too few samples."


def _contest_row(standing: Standing, cells: Sequence[Cell]) -> Row:
    """Return the row of a strategy that has others to beat."""
    return _standing_row(standing, _contestant_cell(standing), cells)


def _contestant_cell(standing: Standing) -> Cell:
    fronts = _fronts_text(standing)
    return Cell(f"● {standing.name}", fronts, "accent") if fronts else Cell(standing.name)


def _plain_row(standing: Standing, cells: Sequence[Cell]) -> Row:
    return _standing_row(standing, Cell(standing.name), cells)


def _standing_row(standing: Standing, name: Cell, cells: Sequence[Cell]) -> Row:
    run = standing.run
    return record_row(run, name, verdict(run.outcome), *cells, run=run.id)


def _fronts_text(standing: Standing) -> str:
    fronts = [name for axis, name in _FRONT_NAMES.items() if axis in standing.fronts]
    return f"best trade for {' and '.join(fronts)}" if fronts else ""


def _ratio_cell(standing: Standing, reference: str) -> Cell:
    if standing.ratio is not None:
        return _measured_ratio_cell(standing.ratio)
    if standing.run.strategy == reference:
        return Cell("reference", "", "quiet")
    return Cell(MISSING)


def _measured_ratio_cell(ratio: Ratio) -> Cell:
    text = f"{ratio.text}{' ⇄' if ratio.paired else ''}"
    return Cell(text, format_interval(ratio.ratio, ratio.low, ratio.high, "x"))


def _memory_cell(standing: Standing) -> Cell:
    if standing.memory_bytes is None:
        return Cell(MISSING)
    return Cell(format_value(standing.memory_bytes, "B"))


def _top1_cell(standing: Standing) -> Cell:
    if standing.top1 is None:
        return Cell(MISSING)
    rule_text, tone = _RULE_TEXTS[holds(standing.agreement)]
    sub = ", ".join(filter(None, (_top1_interval(standing), rule_text)))
    return Cell(format_value(standing.top1, "1"), sub, tone)


def _top1_interval(standing: Standing) -> str:
    ends = interval(standing.agreement, "top1")
    return " to ".join(f"{100 * end:.3g}" for end in ends or ())


def _ratio_blocks(group: GroupView) -> list[Block]:
    """Return the ratios with their intervals, as a picture."""
    ratios = _ratios_by_name(group)
    if ratios:
        return [_ratio_figure(group.reference, ratios)]
    return [] if group.reference else [Note(_NO_REFERENCE, "quiet")]


def _ratios_by_name(group: GroupView) -> dict[str, Ratio]:
    return {
        standing.name: standing.ratio for standing in group.standings if standing.ratio is not None
    }


def _ratio_figure(reference: str, ratios: dict[str, Ratio]) -> Figure:
    return Figure(
        chart="ratios",
        title=f"Speed over {reference}",
        alt=f"Speed of each strategy over that of {reference}: {_ratios_text(ratios)}.",
        data=_ratios_data(reference, ratios),
    )


def _ratios_data(reference: str, ratios: dict[str, Ratio]) -> dict[str, Any]:
    rows = [_ratio_data(name, ratio) for name, ratio in ratios.items()]
    return {"rows": rows, "x": f"speed over {reference} (more is better →)"}


def _ratio_data(name: str, ratio: Ratio) -> dict[str, Any]:
    return {"name": name, "v": ratio.ratio, "low": ratio.low, "high": ratio.high}


def _ratios_text(ratios: dict[str, Ratio]) -> str:
    return ", ".join(f"{name} {ratio.text}" for name, ratio in ratios.items())
