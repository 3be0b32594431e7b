"""A group's strategies side by side: figures with intervals, ratios to the reference, verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.core.format import MISSING, format_interval, format_value
from pytest_llmperf.core.record import Record
from pytest_llmperf.report.html import latency, tradeoffs, usage
from pytest_llmperf.report.html.answers import holds, number
from pytest_llmperf.report.html.blocks import Block, Cell, Figure, Note, Part, Row, Section, Table
from pytest_llmperf.report.html.runs import (
    Group,
    Ratio,
    headline,
    interval,
    named,
    plural,
    ratio,
    shown,
    words,
)
from pytest_llmperf.report.html.tradeoffs import Standing, standings

_TIMES = (
    ("ttft.p50", "TTFT p50"),
    ("ttft.p95", "TTFT p95"),
    ("tpot.p50", "TPOT p50"),
    ("itl.p99", "ITL p99"),
)


def section(group: Group, records: Sequence[Record], place: str, at: int) -> Section:
    """Everything of one model, workload and environment."""
    several = len(group.runs) > 1
    blocks = (*tradeoffs.figures(group, records), *_ratios(group)) if several else ()
    trade = (Part(title="What each strategy buys", blocks=blocks),) if several else ()
    return Section(
        id=f"group-{at}",
        title=f"{group.model}, {group.workload}",
        lead=f"On {place}. {_counted(group)}",
        parts=(
            Part(title="Strategies", blocks=(_table(group, records),)),
            *trade,
            *latency.parts(group),
            *usage.parts(group),
        ),
    )


def _counted(group: Group) -> str:
    many = len(group.every) - len(group.runs)
    older = f" {plural(many, 'other run')} of the same strategies: see all runs." if many else ""
    return f"{plural(len(group.runs), 'strategy')}, each by its newest run.{older}"


def _table(group: Group, records: Sequence[Record]) -> Table:
    standing = standings(group, records)
    titled = _columns(group, standing)
    kept = [
        (title, cells) for title, cells in titled if any(cell.text != MISSING for cell in cells)
    ]
    rows = zip(standing, zip(*(cells for _, cells in kept), strict=True), strict=True)
    return Table(
        caption=f"Strategies of {group.model}, {group.workload}",
        header=("strategy", "its test", *(title for title, _ in kept)),
        rows=tuple(_row(each, cells, _fronts(standing, each)) for each, cells in rows),
        first_number=2,
        note=_note(group, [title for title, cells in titled if (title, cells) not in kept]),
    )


def _columns(group: Group, standing: Sequence[Standing]) -> list[tuple[str, list[Cell]]]:
    """Every column of numbers that there could be, with its cells in the order of the strategies."""
    runs = [each.record for each in standing]
    speed = "prompt speed" if headline(runs[0]).startswith("prefill") else "speed"
    over = [
        _ratio_cell(ratio(run, group), is_reference=run.strategy == group.reference) for run in runs
    ]
    return [
        (speed, [Cell(shown(run, headline(run)), interval(run, headline(run))) for run in runs]),
        (f"over {group.reference}" if group.reference else "ratio", over),
        *((title, [Cell(shown(run, name)) for run in runs]) for name, title in _TIMES),
        (
            "memory",
            [
                Cell(MISSING if each.memory_bytes is None else format_value(each.memory_bytes, "B"))
                for each in standing
            ],
        ),
        ("weights", [Cell(shown(run, "memory.weights")) for run in runs]),
        ("MBU", [Cell(shown(run, "mbu", 2)) for run in runs]),
        ("J/token", [Cell(shown(run, "energy.per_token")) for run in runs]),
        ("top-1", [_top1(each) for each in standing]),
    ]


def _note(group: Group, dropped: Sequence[str]) -> str:
    paired = any(found.paired for run in group.runs if (found := ratio(run, group)) is not None)
    said = ["Intervals are 99 %."]
    said += ["● is on a front of the pictures below."] if len(group.runs) > 1 else []
    said += ["⇄: in pairs that were measured in turn."] if paired else []
    said += (
        [f"No figures for {', '.join(dropped)}: not measurable here, or too few samples."]
        if dropped
        else []
    )
    return " ".join(said)


def _fronts(standing: Sequence[Standing], each: Standing) -> str:
    if len(standing) < 2:  # noqa: PLR2004 - one is on every front
        return ""
    names = {"memory": "memory", "top1": "agreement"}
    found = [name for axis, name in names.items() if each.name in tradeoffs.front(standing, axis)]
    return f"best trade for {' and '.join(found)}" if found else ""


def _row(each: Standing, cells: Sequence[Cell], fronts: str) -> Row:
    run = each.record
    first = Cell(f"● {each.name}", fronts, "accent") if fronts else Cell(each.name)
    return Row(
        cells=(first, verdict(run.outcome), *cells),
        words=words(run),
        outcome=run.outcome,
        run=run.id,
    )


def verdict(outcome: str) -> Cell:
    """An outcome as a cell."""
    tones = {
        "FAIL": "bad",
        "ERROR": "bad",
        "INVALID": "bad",
        "PASS": "good",
        "RECORDED": "quiet",
        "recorded": "quiet",
    }
    return Cell(
        outcome.lower() if outcome.upper() == "RECORDED" else outcome,
        "",
        tones.get(outcome, "warn"),
    )


def _ratio_cell(found: Ratio | None, *, is_reference: bool) -> Cell:
    if found is None:
        return Cell("reference", "", "quiet") if is_reference else Cell(MISSING)
    text = f"{format_value(found.value, 'x')}{' ⇄' if found.paired else ''}"
    return Cell(text, format_interval(found.value, found.low, found.high, "x"))


def _top1(each: Standing) -> Cell:
    if each.top1 is None:
        return Cell(MISSING)
    low, high = (number(each.agreement, "top1", end) for end in ("low", "high"))
    held = holds(each.agreement)
    said = {True: "rule holds", False: "rule does not hold", None: ""}[held]
    between = (
        "" if low is None or high is None or low == high else f"{100 * low:.3g} to {100 * high:.3g}"
    )
    return Cell(
        format_value(each.top1, "1"),
        ", ".join(filter(None, (between, said))),
        "bad" if held is False else "",
    )


def _ratios(group: Group) -> list[Block]:
    """The ratios with their intervals, as a picture."""
    found = [(named(run), each) for run in group.runs if (each := ratio(run, group)) is not None]
    if not found:
        said = f"There is no run of {group.reference or 'a reference'} to hold the others against."
        return [] if group.reference else [Note(said, "quiet")]
    rows = [
        {"name": name, "v": each.value, "low": each.low, "high": each.high} for name, each in found
    ]
    seen = ", ".join(f"{name} {format_value(each.value, 'x')}" for name, each in found)
    return [
        Figure(
            chart="ratios",
            title=f"Speed over {group.reference}",
            alt=f"Speed of each strategy over that of {group.reference}: {seen}.",
            data={"rows": rows, "x": f"speed over {group.reference} (more is better →)"},
        ),
    ]
