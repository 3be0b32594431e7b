"""Times of a group: their distributions, over the repetitions, and along the output."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pytest_llmperf.core.format import MISSING, format_value, scale_of
from pytest_llmperf.core.record import Record
from pytest_llmperf.report.html.blocks import Block, Cell, Figure, Fold, Note, Part, Row, Table
from pytest_llmperf.report.html.groups import GroupView
from pytest_llmperf.report.html.runs import record_row, strategy_name, value_text

_TITLES = {"ttft": "TTFT", "tpot": "TPOT", "latency": "End to end"}
_TABLE_TITLES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "latency": "End to end"}
_OVER_TIME = {
    "ttft": "TTFT over the repetitions",
    "tpot": "TPOT (the mean ITL of a repetition) over the repetitions",
}
_MAX_POINTS = 400
_PERCENTILES = ("p50", "p90", "p95", "p99", "max")
_LEAD = "One dot is one repetition (under load one request); the bar is the median."
_NO_TIMES = "The repetitions' times of these runs were not recorded."
_NO_PROFILE = "ITL along the output was not recorded; the percentiles of ITL are in the table."

_Series = Mapping[str, Sequence[float]]
"""Times in seconds, by the name of the strategy."""


def parts(group: GroupView) -> list[Part]:
    """Return one part: figures and a table; a note where no run has times."""
    timed = [run for run in group.runs if any(run.samples.get(kind) for kind in _TITLES)]
    if not timed:
        return [Part(title="Latency", blocks=(Note(_NO_TIMES, "quiet"),))]
    table = Fold(summary="Percentiles as a table", blocks=(_table(group),))
    blocks = (*_blocks(timed, group.runs), table)
    return [Part(title="Latency", blocks=blocks, lead=_LEAD)]


def _blocks(timed: Sequence[Record], runs: Sequence[Record]) -> list[Block]:
    """Return the figures, then the notes in place of others."""
    blocks = [*_distributions(timed), *_along_output(timed, runs), *_over_repetitions(timed)]
    return sorted(blocks, key=_is_note)


def _is_note(block: Block) -> bool:
    return isinstance(block, Note)


def _distributions(timed: Sequence[Record]) -> Iterable[Block]:
    for kind, title in _TITLES.items():
        series = _series(timed, kind, at_least=1)
        if series:
            yield _distribution(series, title)


def _over_repetitions(timed: Sequence[Record]) -> Iterable[Block]:
    for kind, title in _OVER_TIME.items():
        if series := _series(timed, kind, at_least=2):
            yield _over_time(series, title, _TITLES[kind])


def _series(timed: Sequence[Record], kind: str, *, at_least: int) -> _Series:
    return {
        strategy_name(run): run.samples[kind]
        for run in timed
        if len(run.samples.get(kind, ())) >= at_least
    }


def _distribution(series: _Series, title: str) -> Figure:
    size, unit = _scale(series.values())
    medians = ", ".join(
        f"{name} {format_value(statistics.median(samples), 's')}"
        for name, samples in series.items()
    )
    rows = [_values(name, samples, size) for name, samples in series.items()]
    return Figure(
        chart="strips",
        title=title,
        alt=f"{title} of each repetition, by strategy. Medians: {medians}.",
        data={"rows": rows, "x": f"{title} ({unit})"},
    )


def _over_time(series: _Series, title: str, time: str) -> Figure:
    size, unit = _scale(series.values())
    rows = [_values(name, samples, size) for name, samples in series.items()]
    return Figure(
        chart="lines",
        title=title,
        alt=f"{title}, one line a strategy: {', '.join(series)}.",
        data={"rows": rows, "x": "repetition", "y": f"{time} ({unit})"},
    )


def _along_output(timed: Sequence[Record], runs: Sequence[Record]) -> list[Block]:
    """Return the median ITL at each stretch of the output, where records have it."""
    if not _have_tpot(timed):
        return []
    profiles = _profiles(runs)
    return [_profiles_figure(profiles)] if profiles else [Note(_NO_PROFILE, "quiet")]


def _have_tpot(timed: Sequence[Record]) -> bool:
    return any(run.samples.get("tpot") for run in timed)


def _profiles(runs: Sequence[Record]) -> dict[str, tuple[list[int], list[float]]]:
    return {strategy_name(run): profile for run in runs if (profile := _profile(run)) is not None}


def _profiles_figure(profiles: Mapping[str, tuple[list[int], list[float]]]) -> Figure:
    size, unit = _scale(itls for _, itls in profiles.values())
    rows = [
        {**_values(name, itls, size), "at": tokens} for name, (tokens, itls) in profiles.items()
    ]
    names = ", ".join(profiles)
    return Figure(
        chart="lines",
        title="ITL along the output",
        alt=f"Median gap before each output token, one line a strategy: {names}.",
        data={"rows": rows, "x": "output token", "y": f"ITL ({unit})"},
    )


def _profile(run: Record) -> tuple[list[int], list[float]] | None:
    """Return positions of output tokens, and the median ITL (s) at each."""
    profile = run.extra.get("itl_by_position")
    if not isinstance(profile, dict) or not profile.get("s"):
        return None
    tokens, itls = list(profile.get("token", ())), list(profile["s"])
    return (tokens, itls) if len(tokens) == len(itls) else None


def _scale(series: Iterable[Sequence[float]]) -> tuple[float, str]:
    """Return the unit in which the median of all the times reads best."""
    every_time = [seconds for samples in series for seconds in samples]
    return scale_of(statistics.median(every_time), "s")


def _values(name: str, samples: Sequence[float], size: float) -> dict[str, Any]:
    """Return the samples in a figure's unit.

    Of many, evenly spaced ones with their numbers: a picture has no room for more.
    """
    n = len(samples)
    if n <= _MAX_POINTS:
        return {"name": name, "values": [_rounded(sample / size) for sample in samples]}
    drawn = [point * n // _MAX_POINTS for point in range(_MAX_POINTS)]
    values = [_rounded(samples[index] / size) for index in drawn]
    return {"name": name, "values": values, "at": [index + 1 for index in drawn]}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _table(group: GroupView) -> Table:
    rows = [
        row
        for run in group.runs
        for kind, title in _TABLE_TITLES.items()
        if (row := _row(run, kind, title)) is not None
    ]
    return Table(
        caption=f"Percentiles of {group.model}, {group.workload}",
        header=("strategy", "time", *_PERCENTILES),
        rows=tuple(rows),
        first_number=2,
        note=f"{MISSING}: a percentile q is refused below 2/(1 - q) samples.",
    )


def _row(run: Record, kind: str, title: str) -> Row | None:
    cells = [Cell(value_text(run, f"{kind}.{percentile}")) for percentile in _PERCENTILES]
    if all(cell.text == MISSING for cell in cells):
        return None
    return record_row(run, Cell(strategy_name(run)), Cell(title), *cells)
