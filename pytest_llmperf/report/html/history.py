"""The history of each series: its sessions, changes of level, what was accepted, and where the environment changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from pytest_llmperf.core.format import MISSING, format_percent, format_value, scale_of
from pytest_llmperf.report.html.blocks import Cell, Figure, Fold, Part, Row, Section, Table
from pytest_llmperf.report.html.content import Content, History, Step
from pytest_llmperf.report.html.runs import split_test

_LAST = 10
_SHARED = " and others"
Facts = Mapping[str, str | int | float | bool | None]


def section(content: Content) -> Section | None:
    """One part a series, those with an unaccepted change first.

    None where nothing was asked of a store.
    """
    if not content.histories:
        return None
    ordered = sorted(
        content.histories, key=lambda each: (not _noteworthy(each), each.test, each.strategy)
    )
    changed = sum(map(_noteworthy, ordered))
    drawn = sum(map(_drawn, ordered))
    lead = f"{len(ordered)} series, one value a session; {drawn} have two sessions or more and are drawn. "
    lead += (
        f"{changed} changed their level, and nobody accepted it."
        if changed
        else "No level changed unaccepted."
    )
    return Section(
        id="history",
        title="History",
        lead=lead,
        parts=(
            Part(title="All series", blocks=(_table(ordered),)),
            *(_part(each, content) for each in ordered if _drawn(each)),
        ),
    )


def changed(histories: Sequence[History]) -> list[tuple[str, str]]:
    """Series whose level changed and was not accepted, with what changed."""
    return [(each.test, _said(each)) for each in histories if _noteworthy(each)]


def _noteworthy(history: History) -> bool:
    return any(not step.accepted for step in history.steps) or history.drift is not None


def _drawn(history: History) -> bool:
    return len(history.readings) > 1


def _said(history: History) -> str:
    said = [_step_text(step, history) for step in history.steps if not step.accepted]
    if history.drift is not None:
        said.append(f"drifted by {_signed(history.drift)} from its first level")
    return f"{history.strategy}: {history.metric} {'; '.join(said)}"


def _step_text(step: Step, history: History) -> str:
    levels = f"{format_value(step.before, history.unit)} → {format_value(step.after, history.unit)}"
    return f"{levels} ({_signed(step.after / step.before - 1)}) on {step.at[:10]}"


def _signed(share: float) -> str:
    # A minus sign.
    return f"{'−' if share < 0 else '+'}{format_percent(abs(share), 2)}"  # noqa: RUF001


def _words(history: History) -> str:
    return f"{history.test} {history.label} {history.model} {history.strategy} {history.workload}"


def _table(histories: Sequence[History]) -> Table:
    return Table(
        caption="Series in the history",
        header=("test", "strategy", "metric", "changes", "sessions", "latest"),
        rows=tuple(map(_row, histories)),
        first_number=4,
    )


def _row(history: History) -> Row:
    last = history.readings[-1] if history.readings else None
    name, file = split_test(history.test)
    changes = f"{len(history.steps)}" if history.steps else "none"
    return Row(
        cells=(
            Cell(name, ", ".join(filter(None, (file, history.label, history.workload)))),
            Cell(history.strategy),
            Cell(history.metric),
            Cell(
                changes,
                _said(history) if _noteworthy(history) else "",
                "warn" if _noteworthy(history) else "",
            ),
            Cell(str(len(history.readings))),
            Cell(
                MISSING if last is None else format_value(last.value, history.unit),
                "" if last is None else last.at[:10],
            ),
        ),
        words=_words(history),
        outcome=last.outcome if last is not None else "",
    )


def _part(history: History, content: Content) -> Part:
    name, file = split_test(history.test)
    title = f"{name}{f' ({history.label})' if history.label else ''}, {history.strategy}"
    lead = ", ".join(filter(None, (file, history.model, history.workload)))
    blocks = (
        _figure(history, content),
        Fold(summary="Changes and latest sessions as a table", blocks=_tables(history, content)),
    )
    return Part(title=title, lead=lead, blocks=blocks, words=_words(history))


def _figure(history: History, content: Content) -> Figure:
    readings = history.readings
    seconds = [round(datetime.fromisoformat(each.at).timestamp()) for each in readings]
    index = {at: n for n, at in reversed(list(enumerate(each.at for each in readings)))}
    size, unit = scale_of(readings[-1].value, history.unit)
    alt = f"{len(readings)} sessions of {history.metric} from {readings[0].at[:10]} to {readings[-1].at[:10]}. "
    return Figure(
        chart="history",
        title=history.metric,
        alt=alt
        + (
            _said(history)
            if _noteworthy(history)
            else f"{len(history.steps)} changes of level, all accepted."
        ),
        data={
            "start": seconds[0],
            "gaps": [b - a for a, b in pairwise(seconds)],
            "values": [float(f"{each.value / size:.5g}") for each in readings],
            "bad": [at for at, each in enumerate(readings) if each.outcome == "FAIL"],
            "unit": unit,
            "steps": [
                [index.get(s.at, 0), s.before / size, s.after / size, s.accepted]
                for s in history.steps
            ],
            "levels": [
                [_first_at(readings, each.at), f"accepted by {each.who}: {each.why}"]
                for each in history.levels
            ],
            "places": [[at, text] for at, text in _moves(history, content)],
        },
    )


def _first_at(readings: Sequence[Any], at: str) -> int:
    return next((n for n, each in enumerate(readings) if each.at >= at), len(readings) - 1)


def _moves(history: History, content: Content) -> list[tuple[int, str]]:
    """Where the environment changed from one session to the next, and in what."""
    found = []
    for at, (before, after) in enumerate(pairwise(history.readings), start=1):
        if before.environment != after.environment:
            here, there = (
                content.places.get(after.environment, {}),
                content.places.get(before.environment, {}),
            )
            found.append((at, difference(there, here, content.comparable) or "another environment"))
    return found


def difference(before: Facts, after: Facts, names: Sequence[str]) -> str:
    """The facts of these names that differ, as text."""
    changes = [
        (name, before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    ]
    return ", ".join(f"{name} {old} → {new}" for name, old, new in changes)


def _step_cell(step: Step) -> Cell:
    return Cell("accepted change") if step.accepted else Cell("change", "", "warn")


def _tables(history: History, content: Content) -> tuple[Table, ...]:
    events = [(step.at, _step_cell(step), _step_text(step, history)) for step in history.steps]
    events += [(each.at, Cell("accepted"), f"{each.who}: {each.why}") for each in history.levels]
    events += [
        (history.readings[at].at, Cell("environment"), text)
        for at, text in _moves(history, content)
    ]
    latest = [
        Row(
            cells=(
                Cell(each.at[:16].replace("T", " ")),
                Cell(each.outcome),
                Cell(format_value(each.value, history.unit, 4)),
            )
        )
        for each in reversed(history.readings[-_LAST:])
    ]
    sessions = Table(
        caption=f"Latest sessions of {history.test}",
        header=("when (UTC)", "outcome", "value"),
        rows=tuple(latest),
        first_number=2,
    )
    if not events:
        return (sessions,)
    rows = tuple(
        Row(cells=(Cell(at[:10]), what, Cell(text)))
        for at, what, text in sorted(events, key=lambda event: event[0])
    )
    return Table(
        caption=f"What happened to {history.test}", header=("when", "what", "detail"), rows=rows
    ), sessions
