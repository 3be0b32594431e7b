"""The history of each series: its sessions, changes of level, and moves between environments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple

from pytest_llmperf.core.format import MISSING, format_percent, format_value, scale_of
from pytest_llmperf.history.sessions import SessionValue
from pytest_llmperf.report.html.blocks import Cell, Figure, Fold, Part, Row, Section, Table
from pytest_llmperf.report.html.content import Content, History, Step
from pytest_llmperf.report.html.runs import minute_text, split_test, text_row

_N_LATEST = 10
_LEAST_DRAWN = 4
"""Fewer sessions are a table: a few dots are no chart."""

Facts = Mapping[str, str | int | float | bool | None]


class _Event(NamedTuple):
    """Something that happened to a series. `at` is UTC, ISO 8601."""

    at: str
    kind: Cell
    detail: str


def section(content: Content) -> Section | None:
    """Return one part a series, those with an unaccepted change first.

    None where nothing was asked of a store.
    """
    if not content.histories:
        return None
    ordered = sorted(
        content.histories,
        key=lambda history: (not _is_noteworthy(history), history.test, history.strategy),
    )
    table = Part(title="All series", blocks=(_table(ordered),))
    drawn = [_part(history, content) for history in ordered if _is_drawn(history)]
    return Section(id="history", title="History", lead=_lead(ordered), parts=(table, *drawn))


def changed(histories: Sequence[History]) -> list[tuple[str, str]]:
    """Return the test and the change of each series whose level changed and was not accepted."""
    return [
        (history.test, _change_text(history)) for history in histories if _is_noteworthy(history)
    ]


def difference(before: Facts, after: Facts, names: Sequence[str]) -> str:
    """Return the facts of these names that differ, as text."""
    differing_names = _differing_names(before, after, names)
    return ", ".join(_fact_change_text(before, after, name) for name in differing_names)


def _differing_names(before: Facts, after: Facts, names: Sequence[str]) -> list[str]:
    return [name for name in names if before.get(name) != after.get(name)]


def _fact_change_text(before: Facts, after: Facts, name: str) -> str:
    return f"{name} {before.get(name)} → {after.get(name)}"


def _is_noteworthy(history: History) -> bool:
    return any(not step.accepted for step in history.steps) or history.drift is not None


def _is_drawn(history: History) -> bool:
    return len(history.sessions) >= _LEAST_DRAWN


def _lead(histories: Sequence[History]) -> str:
    count = f"{len(histories)} series, one value a session"
    return f"{count}; {_drawn_text(histories)} {_alarm_text(histories)}"


def _drawn_text(histories: Sequence[History]) -> str:
    n_drawn = sum(map(_is_drawn, histories))
    return f"those of four sessions or more are drawn ({n_drawn})."


def _alarm_text(histories: Sequence[History]) -> str:
    n_changed = sum(map(_is_noteworthy, histories))
    if n_changed:
        return f"{n_changed} changed their level, and nobody accepted it."
    return "There are no unaccepted level changes."


def _change_text(history: History) -> str:
    texts = [_step_text(step, history) for step in history.steps if not step.accepted]
    if history.drift is not None:
        texts.append(f"drifted by {_signed(history.drift)} from its first level")
    return f"{history.strategy}: {history.metric} {'; '.join(texts)}"


def _step_text(step: Step, history: History) -> str:
    levels = _levels_text(step, history.unit)
    return f"{levels} ({_share_text(step)}) on {step.at[:10]}"


def _share_text(step: Step) -> str:
    return _signed(step.after / step.before - 1)


def _levels_text(step: Step, unit: str) -> str:
    return f"{format_value(step.before, unit)} → {format_value(step.after, unit)}"


def _signed(share: float) -> str:
    sign = "−" if share < 0 else "+"  # noqa: RUF001 - a minus sign
    return f"{sign}{format_percent(abs(share), 2)}"


def _search_words(history: History) -> str:
    return f"{history.test} {history.label} {history.model} {history.strategy} {history.workload}"


def _table(histories: Sequence[History]) -> Table:
    return Table(
        caption="Series in the history",
        header=("test", "strategy", "metric", "changes", "sessions", "latest"),
        rows=tuple(map(_row, histories)),
        first_number=4,
    )


def _row(history: History) -> Row:
    last = history.sessions[-1] if history.sessions else None
    cells = (
        _test_cell(history),
        Cell(history.strategy),
        Cell(history.metric),
        _changes_cell(history),
        Cell(str(len(history.sessions))),
        _latest_cell(last, history.unit),
    )
    outcome = last.outcome if last is not None else ""
    return Row(cells=cells, words=_search_words(history), outcome=outcome)


def _test_cell(history: History) -> Cell:
    name, file = split_test(history.test)
    return Cell(name, ", ".join(filter(None, (file, history.label, history.workload))))


def _changes_cell(history: History) -> Cell:
    count = str(len(history.steps) or "none")
    return Cell(count, _change_text(history), "warn") if _is_noteworthy(history) else Cell(count)


def _latest_cell(last: SessionValue | None, unit: str) -> Cell:
    if last is None:
        return Cell(MISSING)
    return Cell(format_value(last.value, unit), last.created[:10])


def _part(history: History, content: Content) -> Part:
    name, file = split_test(history.test)
    label = f" ({history.label})" if history.label else ""
    return Part(
        title=f"{name}{label}, {history.strategy}",
        lead=", ".join(filter(None, (file, history.model, history.workload))),
        blocks=_blocks(history, list(_moves(history, content))),
        words=_search_words(history),
    )


def _blocks(history: History, moves: Sequence[tuple[int, str]]) -> tuple[Figure, Fold]:
    tables = _tables(history, moves)
    fold = Fold(summary="Changes and latest sessions as a table", blocks=tables)
    return _figure(history, moves), fold


def _moves(history: History, content: Content) -> Iterator[tuple[int, str]]:
    """Yield each session that ran in another environment than the one before, and what differs."""
    for index, (before, after) in enumerate(pairwise(history.sessions), start=1):
        if before.environment_key != after.environment_key:
            facts_before = content.places.get(before.environment_key, {})
            facts_after = content.places.get(after.environment_key, {})
            text = difference(facts_before, facts_after, content.comparable)
            yield index, text or "another environment"


def _figure(history: History, moves: Sequence[tuple[int, str]]) -> Figure:
    return Figure(
        chart="history",
        title=history.metric,
        alt=_alt(history),
        data={**_values_data(history), **_events_data(history, moves)},
    )


def _alt(history: History) -> str:
    sessions = history.sessions
    first, last = sessions[0].created[:10], sessions[-1].created[:10]
    alt = f"{len(sessions)} sessions of {history.metric} from {first} to {last}. "
    if _is_noteworthy(history):
        return alt + _change_text(history)
    return f"{alt}{len(history.steps)} changes of level, all accepted."


def _values_data(history: History) -> dict[str, Any]:
    """Return when the sessions were (seconds), and their values in the figure's unit."""
    sessions = history.sessions
    seconds = [_seconds(session) for session in sessions]
    size, unit = scale_of(sessions[-1].value, history.unit)
    return {
        "start": seconds[0],
        "gaps": [after - before for before, after in pairwise(seconds)],
        "values": [float(f"{session.value / size:.5g}") for session in sessions],
        "bad": [index for index, session in enumerate(sessions) if session.outcome == "FAIL"],
        "unit": unit,
    }


def _seconds(session: SessionValue) -> int:
    return round(datetime.fromisoformat(session.created).timestamp())


def _events_data(history: History, moves: Sequence[tuple[int, str]]) -> dict[str, Any]:
    """Return what happened, each at the index of a session."""
    sessions = history.sessions
    size, _ = scale_of(sessions[-1].value, history.unit)
    return {
        "steps": [_step_data(step, sessions, size) for step in history.steps],
        "levels": [
            [_first_since(sessions, level.at), f"accepted by {level.who}: {level.why}"]
            for level in history.levels
        ],
        "places": [[index, text] for index, text in moves],
    }


def _step_data(step: Step, sessions: Sequence[SessionValue], size: float) -> list[Any]:
    index = _index_at(sessions, step.at)
    return [index, step.before / size, step.after / size, step.accepted]


def _index_at(sessions: Sequence[SessionValue], at: str) -> int:
    """Return the index of the session at this time, 0 where there is none."""
    moments = [session.created for session in sessions]
    return moments.index(at) if at in moments else 0


def _first_since(sessions: Sequence[SessionValue], at: str) -> int:
    """Return the index of the first session at this time or later, else that of the last."""
    return next(
        (index for index, session in enumerate(sessions) if session.created >= at),
        len(sessions) - 1,
    )


def _tables(history: History, moves: Sequence[tuple[int, str]]) -> tuple[Table, ...]:
    events = _events(history, moves)
    sessions = _sessions_table(history)
    return (_events_table(history, events), sessions) if events else (sessions,)


def _events(history: History, moves: Sequence[tuple[int, str]]) -> list[_Event]:
    return [*_step_events(history), *_level_events(history), *_move_events(history, moves)]


def _step_events(history: History) -> Iterator[_Event]:
    for step in history.steps:
        yield _Event(step.at, _step_cell(step), _step_text(step, history))


def _step_cell(step: Step) -> Cell:
    return Cell("accepted change") if step.accepted else Cell("change", "", "warn")


def _level_events(history: History) -> Iterator[_Event]:
    for level in history.levels:
        yield _Event(level.at, Cell("accepted"), f"{level.who}: {level.why}")


def _move_events(history: History, moves: Sequence[tuple[int, str]]) -> Iterator[_Event]:
    for index, text in moves:
        yield _Event(history.sessions[index].created, Cell("environment"), text)


def _events_table(history: History, events: Sequence[_Event]) -> Table:
    return Table(
        caption=f"What happened to {history.test}",
        header=("when", "what", "detail"),
        rows=tuple(map(_event_row, sorted(events, key=attrgetter("at")))),
    )


def _event_row(event: _Event) -> Row:
    return Row(cells=(Cell(event.at[:10]), event.kind, Cell(event.detail)))


def _sessions_table(history: History) -> Table:
    return Table(
        caption=f"Latest sessions of {history.test}",
        header=("when (UTC)", "outcome", "value"),
        rows=tuple(_session_rows(history)),
        first_number=2,
    )


def _session_rows(history: History) -> Iterator[Row]:
    """Yield the latest sessions, newest first."""
    for session in reversed(history.sessions[-_N_LATEST:]):
        yield _session_row(session, history.unit)


def _session_row(session: SessionValue, unit: str) -> Row:
    value = format_value(session.value, unit, 4)
    return text_row(minute_text(session.created), session.outcome, value)
