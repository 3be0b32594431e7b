"""What the summary says, as columns and sentences. Pure: from records to text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llmperf.core.format import (
    MISSING,
    NOT_MEASURABLE,
    format_interval,
    format_number,
    format_percent,
    format_value,
)
from pytest_llmperf.core.record import speed_metric
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.report.table import Column, display_width, telling_width, without_file

if TYPE_CHECKING:
    from pytest_llmperf.core.record import MetricValue, Record

_STATUS = {"passed": "PASS", "failed": "FAIL", "pass": "PASS", "fail": "FAIL"}
_REFERENCE = "ref"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A metric as a column. `rank` as in Column; `explain` is its entry in the legend."""

    header: str
    metric: str
    rank: int
    verbose: bool = False
    digits: int = 3
    explain: str = ""


METRICS = (
    Shown(header="TTFT p50", metric="ttft.p50", rank=80),
    Shown(header="TTFT p95", metric="ttft.p95", rank=25, verbose=True),
    Shown(header="TPOT p50", metric="tpot.p50", rank=28, verbose=True),
    Shown(header="peak", metric="memory.peak", rank=85),
    Shown(header="weights", metric="memory.weights", rank=40),
    Shown(
        header="MBU",
        metric="mbu",
        rank=60,
        digits=2,
        explain="MBU: share of the measured memory bandwidth",
    ),
    Shown(
        header="MFU",
        metric="mfu",
        rank=15,
        verbose=True,
        digits=2,
        explain="MFU: share of the measured matmul rate",
    ),
    Shown(header="J/token", metric="energy.per_token", rank=20, verbose=True),
    Shown(header="load", metric="load_time", rank=18, verbose=True),
)


def status(outcome: str) -> str:
    """An outcome in the words of the reports: PASS, FAIL, UNDECIDED, INVALID, NOT COMPARABLE, or "recorded"."""
    text = outcome.replace("_", " ").strip()
    return text.lower() if text.lower() == "recorded" else _STATUS.get(text.lower(), text.upper())


def columns(records: Sequence[Record], width: int, *, verbose: bool) -> list[Column]:
    """All columns that have something to say, the status last.

    Cells are in the order of the records.

    The wider the terminal (`width`), the less the names are shortened.
    """
    names, strategies = _brief_tests(records), tuple(r.strategy for r in records)
    name_floor, strategy_floor = (
        telling_width(names, width // 6, width // 4),
        telling_width(strategies, width // 10, width // 3),
    )
    found = [
        Column(header="test", cells=_tests(records), brief=names, rank=None, floor=name_floor),
        Column(header="strategy", cells=strategies, rank=90, floor=strategy_floor),
        *_engines(records),
        Column(header="workload", cells=tuple(r.workload_text for r in records), rank=50),
        Column(
            header="tok/s", cells=_throughputs(records, brackets=verbose), rank=None, right=True
        ),
        *(_metric_column(m, records) for m in METRICS if verbose or not m.verbose),
        Column(header="top-1", cells=tuple(map(_agreement, records)), rank=75, right=True),
        Column(header="ratio", cells=_ratios(records, intervals=verbose), rank=55, right=True),
    ]
    if verbose:
        found.append(
            Column(header="samples", cells=tuple(map(_n_samples, records)), rank=30, right=True)
        )
    found.append(
        Column(header="verdict", cells=tuple(status(r.outcome) for r in records), rank=None)
    )
    return [c for c in found if c.rank is None or any(cell != MISSING for cell in c.cells)]


def _engines(records: Sequence[Record]) -> list[Column]:
    """Which engine each run was on, where there were several."""
    if len({record.engine for record in records}) < 2:  # noqa: PLR2004 - one engine is no news
        return []
    return [Column(header="engine", cells=tuple(record.engine for record in records), rank=88)]


def legend(shown: Sequence[Column], records: Sequence[Record], *, verbose: bool) -> str:
    """What the headers mean, for those that are there."""
    headers = {c.header for c in shown}
    parts = [_throughput_legend(records, "the" if verbose else "the farther end of the")]
    parts += [m.explain for m in METRICS if m.header in headers and m.explain]
    if "top-1" in headers:
        parts.append("top-1: positions where the reference's token is the most likely one")
    if "ratio" in headers:
        parts.append("ratio: tok/s over that of the run it was paired with (ref)")
    return "; ".join(parts)


def left_out(dropped: Sequence[Column], n_runs: int, width: int) -> str:
    """Which columns had no room; a text that all runs share is said here instead."""
    if not dropped:
        return ""
    return f"no room at {width} columns for: {', '.join(_name(c, n_runs) for c in dropped)}"


def not_measurable(records: Sequence[Record], shown: Sequence[Column]) -> list[str]:
    """Each reason once, with the columns and the number of runs it holds for."""
    by_reason: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    headers = {c.header for c in shown}
    for record in records:
        for header, value in _shown_values(record):
            if header in headers and value.value is None:
                names, runs = by_reason.setdefault(value.reason or "no reason was given", ({}, {}))
                names[header] = runs[record.id] = None
    return [
        f"n/m {', '.join(names)}{_share(len(runs), len(records))}: {why}"
        for why, (names, runs) in by_reason.items()
    ]


def short_names(ids: Sequence[str]) -> list[str]:
    """Test ids without their file, or without its folders, as far as different tests keep different names."""
    for shorter in (without_file, _without_folders):
        names = {i: shorter(i) for i in ids}
        if len(set(names.values())) == len(names):
            return [names[i] for i in ids]
    return list(ids)


def _without_folders(test: str) -> str:
    path, sep, name = test.partition("::")
    return path.rpartition("/")[2] + sep + name


def _tests(records: Sequence[Record]) -> tuple[str, ...]:
    return _marked(_labelled(records), records)


def _marked(names: Iterable[str], records: Sequence[Record]) -> tuple[str, ...]:
    """A run that the gate had measured once more says so."""
    return tuple(
        f"{name}, again" if r.extra.get("attempt", 1) > 1 else name
        for name, r in zip(names, records, strict=True)
    )


def _labelled(records: Sequence[Record]) -> tuple[str, ...]:
    """Short names; the run's label is added where a test made several runs that look the same."""
    look = [(r.test, r.strategy, r.workload_text) for r in records]
    names = short_names([r.test for r in records])
    return tuple(
        f"{n} {r.label}" if r.label and look.count(k) > 1 else n
        for n, r, k in zip(names, records, look, strict=True)
    )


def _brief_tests(records: Sequence[Record]) -> tuple[str, ...]:
    """Without what the strategy column says again, and without the "test_" that all have."""
    strategies = {r.strategy for r in records}
    names = (_without_parameter(name, strategies) for name in _labelled(records))
    return _marked((name.removeprefix("test_") or name for name in names), records)


def _without_parameter(name: str, strategies: set[str]) -> str:
    head, bracket, parameter = name.partition("[")
    return head if bracket and head and parameter.removesuffix("]") in strategies else name


def _headline(record: Record) -> MetricValue | None:
    return _metrics(record).get(speed_metric(record))


def _metrics(record: Record) -> dict[str, MetricValue]:
    return {m.name: m for m in record.metrics}


def _shown_values(record: Record) -> list[tuple[str, MetricValue]]:
    metrics = _metrics(record)
    found = [("tok/s", _headline(record)), *((m.header, metrics.get(m.metric)) for m in METRICS)]
    return [(header, value) for header, value in found if value is not None]


def _throughputs(records: Sequence[Record], *, brackets: bool) -> tuple[str, ...]:
    """Numbers and intervals, each right-aligned among themselves. The unit is the header's.

    Without `brackets` a lopsided interval is shown by its farther end, which is the shorter text.
    """
    values = [_headline(r) for r in records]
    numbers = [_cell(v, lambda m: format_number(m.value or 0.0)) for v in values]
    intervals = [
        "" if v is None or v.value is None else _interval(v.value, v.low, v.high, brackets)
        for v in values
    ]
    room = max(map(display_width, intervals))
    return tuple(f"{a} {b:>{room}}" if room else a for a, b in zip(numbers, intervals, strict=True))


def _interval(value: float, low: float | None, high: float | None, brackets: bool) -> str:
    if brackets or low is None or high is None or not math.isfinite(high - low):
        return format_interval(value, low, high)
    farther = max(value - low, high - value)
    return format_interval(value, value - farther, value + farther)


def _throughput_legend(records: Sequence[Record], which: str) -> str:
    found = [v for v in map(_headline, records) if v is not None]
    levels = {v.confidence for v in found if v.confidence is not None and v.low is not None}
    interval = f", ± {which} {100 * levels.pop():g} % interval" if len(levels) == 1 else ""
    prefill = [r.workload.get("type") == "prefill" for r in records]
    tokens = "output tokens (of a prefill: prompt tokens)" if any(prefill) else "output tokens"
    tokens = "prompt tokens" if all(prefill) else tokens
    return f"tok/s: {tokens}{interval}"


def _metric_column(shown: Shown, records: Sequence[Record]) -> Column:
    def text(metric: MetricValue) -> str:
        return format_value(metric.value or 0.0, metric.unit, shown.digits)

    values = (_metrics(r).get(shown.metric) for r in records)
    return Column(
        header=shown.header,
        cells=tuple(_cell(v, text) for v in values),
        rank=shown.rank,
        right=True,
    )


def _cell(value: MetricValue | None, text: Callable[[MetricValue], str]) -> str:
    if value is None:
        return MISSING
    return NOT_MEASURABLE if value.value is None else text(value)


def _agreement(record: Record) -> str:
    found: dict[str, Any] = record.agreement or {}
    if found.get("itself"):
        return "itself"
    top1 = found.get("top1")
    value = top1.get("value") if isinstance(top1, dict) else top1
    return format_percent(value) if isinstance(value, int | float) else MISSING


def _ratios(records: Sequence[Record], *, intervals: bool) -> tuple[str, ...]:
    return tuple(_ratio(r, _reference(r, records), intervals) for r in records)


def _reference(record: Record, records: Sequence[Record]) -> Record | None:
    """The run that `record` was compared with: the one it names, else the last of those that share its mark."""
    if record.paired_with is None:
        return None
    named = [r for r in records if r.id == record.paired_with]
    sharing = [r for r in records if r.paired_with == record.paired_with]
    return named[-1] if named else sharing[-1] if len(sharing) > 1 else None


def _ratio(record: Record, reference: Record | None, interval: bool) -> str:
    """The paired ratio where the samples are there, as a claim on the two runs would be judged.

    Else that of the values.
    """
    if reference is None:
        return MISSING
    if reference is record:
        return _REFERENCE
    ours, theirs = _headline(record), _headline(reference)
    if ours is None or theirs is None or ours.value is None or not theirs.value:
        return NOT_MEASURABLE
    a, b = record.samples.get(ours.name, ()), reference.samples.get(theirs.name, ())
    if not a or len(a) != len(b) or min(*a, *b) <= 0:
        return format_value(ours.value / theirs.value, "x")
    paired = stats.log_ratio_interval(a, b, paired=True)
    text = format_value(math.exp(paired.center), "x")
    if not interval or not math.isfinite(paired.high):
        return text
    return f"{text} [{format_number(math.exp(paired.low))}, {format_number(math.exp(paired.high))}]"


def _n_samples(record: Record) -> str:
    value = _headline(record)
    return MISSING if value is None else str(value.n)


def _name(column: Column, n_runs: int) -> str:
    shared = set(column.cells)
    if column.header in {"strategy", "workload"} and len(shared) == 1:
        return f"{column.header} ({shared.pop()}{' in every run' if n_runs > 1 else ''})"
    return column.header


def _share(n: int, total: int) -> str:
    return "" if n == total else f" in {n} of {total} runs"
