"""What the summary says, as columns and sentences. Pure: from records to text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmperf.core.format import (
    MISSING,
    NOT_MEASURABLE,
    format_interval,
    format_number,
    format_percent,
    format_value,
    short_duration,
)
from pytest_llmperf.core.record import TOOK, speed_metric
from pytest_llmperf.core.recorded_ratio import recorded_ratio
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.report.fastest import top1_agreement
from pytest_llmperf.report.run_names import brief_names, full_names
from pytest_llmperf.report.table import Column, display_width, telling_width

if TYPE_CHECKING:
    from pytest_llmperf.core.record import MetricValue, Record

_STATUS = {"passed": "PASS", "failed": "FAIL", "pass": "PASS", "fail": "FAIL"}
_REFERENCE = "ref"


@dataclass(frozen=True, kw_only=True)
class MetricColumn:
    """A metric as a column. `rank` as in Column; `explain` is its entry in the legend."""

    header: str
    metric: str
    rank: int
    verbose: bool = False
    digits: int = 3
    explain: str = ""


METRICS = (
    MetricColumn(header="TTFT p50", metric="ttft.p50", rank=80),
    MetricColumn(header="TTFT p95", metric="ttft.p95", rank=25, verbose=True),
    MetricColumn(header="TPOT p50", metric="tpot.p50", rank=28, verbose=True),
    MetricColumn(header="peak", metric="memory.peak", rank=85),
    MetricColumn(header="weights", metric="memory.weights", rank=40),
    MetricColumn(
        header="MBU",
        metric="mbu",
        rank=60,
        digits=2,
        explain="MBU: share of the measured memory bandwidth",
    ),
    MetricColumn(
        header="MFU",
        metric="mfu",
        rank=15,
        verbose=True,
        digits=2,
        explain="MFU: share of the measured matmul rate",
    ),
    MetricColumn(header="J/token", metric="energy.per_token", rank=20, verbose=True),
    MetricColumn(header="load", metric="load_time", rank=18, verbose=True),
)


def status(outcome: str) -> str:
    """Return an outcome in the words of the reports: PASS, FAIL, NOT COMPARABLE, "recorded"."""
    text = outcome.replace("_", " ").strip()
    if text.lower() == "recorded":
        return "recorded"
    return _STATUS.get(text.lower(), text.upper())


def took(record: Record) -> str:
    """Return the time of the measurement that a run is of: '<1 s', '43 s'.

    The pairs that were measured with another version are in it.
    """
    return MISSING if TOOK not in record.extra else short_duration(_took_s(record))


def took_of_test(records: Sequence[Record], test: str) -> str:
    """Return the time of all measurements of a test: '43 s'; empty where it is not known.

    The sides of a comparison share theirs.
    """
    seconds_by_measurement = {
        record.paired_with or record.id: _took_s(record)
        for record in records
        if record.test == test and TOOK in record.extra
    }
    return short_duration(sum(seconds_by_measurement.values())) if seconds_by_measurement else ""


def _took_s(record: Record) -> float:
    against = record.extra.get("against")
    pairs_s = against.get(TOOK, 0.0) if isinstance(against, Mapping) else 0.0
    return float(record.extra[TOOK]) + float(pairs_s)


def columns(records: Sequence[Record], width: int, *, verbose: bool) -> list[Column]:
    """Return all columns that have something to say, the status last.

    Cells are in the order of the records.

    The wider the terminal (`width`), the less the names are shortened.
    """
    verdicts = tuple(status(record.outcome) for record in records)
    all_columns = [
        *_identity_columns(records, width),
        *_number_columns(records, verbose=verbose),
        Column(header="took", cells=tuple(map(took, records)), rank=87, right=True),
        Column(header="verdict", cells=verdicts, rank=None),
    ]
    return [column for column in all_columns if column.rank is None or _says_something(column)]


def _number_columns(records: Sequence[Record], *, verbose: bool) -> list[Column]:
    """Return speed, metrics, agreement and ratio; more of them if `verbose`."""
    speeds = _throughputs(records, brackets=verbose)
    agreements = tuple(map(_agreement, records))
    ratios = _ratios(records, intervals=verbose)
    number_columns = [
        Column(header="tok/s", cells=speeds, rank=None, right=True),
        *(_metric_column(metric, records) for metric in METRICS if verbose or not metric.verbose),
        Column(header="top-1", cells=agreements, rank=75, right=True),
        Column(header="ratio", cells=ratios, rank=55, right=True),
    ]
    if verbose:
        n_samples = tuple(map(_n_samples, records))
        number_columns.append(Column(header="samples", cells=n_samples, rank=30, right=True))
        processes = tuple(map(processes_text, records))
        number_columns.append(Column(header="processes", cells=processes, rank=29, right=True))
    return number_columns


def _says_something(column: Column) -> bool:
    return any(cell != MISSING for cell in column.cells)


def _identity_columns(records: Sequence[Record], width: int) -> list[Column]:
    """Return the columns that say which run a row is."""
    names = brief_names(records)
    strategies = tuple(record.strategy for record in records)
    workloads = tuple(record.workload_text for record in records)
    name_floor = telling_width(names, width // 6, width // 4)
    strategy_floor = telling_width(strategies, width // 10, width // 3)
    return [
        Column(header="test", cells=full_names(records), brief=names, rank=None, floor=name_floor),
        Column(header="strategy", cells=strategies, rank=90, floor=strategy_floor),
        *_engine_column(records),
        Column(header="workload", cells=workloads, rank=50),
    ]


def _engine_column(records: Sequence[Record]) -> list[Column]:
    """Return which engine each run was on, where there were several."""
    engines = tuple(record.engine for record in records)
    if len(set(engines)) < 2:  # noqa: PLR2004 - one engine is no news
        return []
    return [Column(header="engine", cells=engines, rank=88)]


def legend(visible: Sequence[Column], records: Sequence[Record], *, verbose: bool) -> str:
    """Return what the headers mean, for those that are there."""
    headers = {column.header for column in visible}
    parts = [_throughput_legend(records, "the" if verbose else "the farther end of the")]
    parts += [metric.explain for metric in METRICS if metric.header in headers and metric.explain]
    if "top-1" in headers:
        parts.append("top-1: positions where the reference's token is the most likely one")
    if "ratio" in headers:
        parts.append("ratio: tok/s over that of the run it was paired with (ref)")
    return "; ".join(parts)


def left_out(dropped: Sequence[Column], n_runs: int, width: int) -> str:
    """Return which columns had no room; a text that all runs share is said here instead."""
    if not dropped:
        return ""
    names = ", ".join(_name(column, n_runs) for column in dropped)
    return f"no room at {width} columns for: {names}"


def not_measurable(records: Sequence[Record], visible: Sequence[Column]) -> list[str]:
    """Return each reason once, with the columns and the number of runs it holds for."""
    headers = {column.header for column in visible}
    by_reason: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        for header, reason in _missing(record):
            if header in headers:
                by_reason.setdefault(reason, []).append((header, record.id))
    return [_not_measurable(reason, places, len(records)) for reason, places in by_reason.items()]


def _missing(record: Record) -> list[tuple[str, str]]:
    """Return the headers whose value is not measurable, with their reasons."""
    return [
        (header, value.reason or "no reason was given")
        for header, value in _values(record)
        if value.value is None
    ]


def _not_measurable(reason: str, places: Sequence[tuple[str, str]], n_runs: int) -> str:
    """Say for which headers and for how many runs a reason holds; places are both of them."""
    headers = dict.fromkeys(header for header, _ in places)
    n_affected = len({run for _, run in places})
    return f"n/m {', '.join(headers)}{_share(n_affected, n_runs)}: {reason}"


def _headline(record: Record) -> MetricValue | None:
    return _metrics(record).get(speed_metric(record))


def _metrics(record: Record) -> dict[str, MetricValue]:
    return {metric.name: metric for metric in record.metrics}


def _values(record: Record) -> list[tuple[str, MetricValue]]:
    """Return the record's values by the header of their column."""
    metrics = _metrics(record)
    values = [("tok/s", _headline(record))]
    values += [(column.header, metrics.get(column.metric)) for column in METRICS]
    return [(header, value) for header, value in values if value is not None]


def _throughputs(records: Sequence[Record], *, brackets: bool) -> tuple[str, ...]:
    """Return numbers and intervals, each right-aligned among themselves.

    The unit is the header's. Without `brackets` a lopsided interval is shown by its farther end,
    which is the shorter text.
    """
    headlines = [_headline(record) for record in records]
    numbers = [_cell(headline, _number) for headline in headlines]
    intervals = [_interval(headline, brackets=brackets) for headline in headlines]
    room = max(map(display_width, intervals))
    if not room:
        return tuple(numbers)
    return tuple(
        f"{number} {interval:>{room}}" for number, interval in zip(numbers, intervals, strict=True)
    )


def _number(metric: MetricValue) -> str:
    return format_number(metric.value or 0.0)


def _interval(metric: MetricValue | None, *, brackets: bool) -> str:
    if metric is None or metric.value is None:
        return ""
    value, low, high = metric.value, metric.low, metric.high
    if brackets or low is None or high is None or not math.isfinite(high - low):
        return format_interval(value, low, high)
    farther = max(value - low, high - value)
    return format_interval(value, value - farther, value + farther)


def _throughput_legend(records: Sequence[Record], end: str) -> str:
    headlines = [value for value in map(_headline, records) if value is not None]
    levels = {
        value.confidence
        for value in headlines
        if value.confidence is not None and value.low is not None
    }
    interval = f", ± {end} {100 * levels.pop():g} % interval" if len(levels) == 1 else ""
    return f"tok/s: {_counted_tokens(records)}{interval}"


def _counted_tokens(records: Sequence[Record]) -> str:
    are_prefills = [record.workload.get("type") == "prefill" for record in records]
    if all(are_prefills):
        return "prompt tokens"
    if any(are_prefills):
        return "output tokens (of a prefill: prompt tokens)"
    return "output tokens"


def _metric_column(column: MetricColumn, records: Sequence[Record]) -> Column:
    def text(metric: MetricValue) -> str:
        return format_value(metric.value or 0.0, metric.unit, column.digits)

    values = (_metrics(record).get(column.metric) for record in records)
    cells = tuple(_cell(value, text) for value in values)
    return Column(header=column.header, cells=cells, rank=column.rank, right=True)


def _cell(value: MetricValue | None, text: Callable[[MetricValue], str]) -> str:
    if value is None:
        return MISSING
    return NOT_MEASURABLE if value.value is None else text(value)


def _agreement(record: Record) -> str:
    if record.agreement and record.agreement.get("itself"):
        return "itself"
    top1 = top1_agreement(record)
    return MISSING if top1 is None else format_percent(top1)


def _ratios(records: Sequence[Record], *, intervals: bool) -> tuple[str, ...]:
    return tuple(
        _ratio(record, _reference(record, records), interval=intervals) for record in records
    )


def _reference(record: Record, records: Sequence[Record]) -> Record | None:
    """Return the run that `record` was compared with.

    It is the one that it names, else the last of those that share its mark.
    """
    if record.paired_with is None:
        return None
    by_id = [other for other in records if other.id == record.paired_with]
    if by_id:
        return by_id[-1]
    sharing = [other for other in records if other.paired_with == record.paired_with]
    return sharing[-1] if len(sharing) > 1 else None


def _ratio(record: Record, reference: Record | None, *, interval: bool) -> str:
    """Return the paired ratio where the samples are there, else that of the values.

    The paired one is what a claim on the two runs would be judged by.
    """
    if reference is None:
        return MISSING
    if reference is record:
        return _REFERENCE
    speed, base = _headline(record), _headline(reference)
    if speed is None or base is None or speed.value is None or not base.value:
        return NOT_MEASURABLE
    samples = record.samples.get(speed.name, ())
    base_samples = reference.samples.get(base.name, ())
    if _are_pairs(samples, base_samples):
        ratio = recorded_ratio(record, reference, speed.name, paired=True)
        return _ratio_text(ratio, interval=interval)
    return format_value(speed.value / base.value, "x")


def _are_pairs(samples: Sequence[float], base: Sequence[float]) -> bool:
    return bool(samples) and len(samples) == len(base) and min(*samples, *base) > 0


def _ratio_text(ratio: stats.LogRatio, *, interval: bool) -> str:
    text = format_value(math.exp(ratio.center), "x")
    if not interval or not math.isfinite(ratio.high):
        return text
    low, high = format_number(math.exp(ratio.low)), format_number(math.exp(ratio.high))
    return f"{text} [{low}, {high}]"


def processes_text(record: Record) -> str:
    """Say how many processes a run was measured in: '3, 0.8 % apart', or '1 of unknown spread'."""
    facts = record.in_processes
    if facts.apart is not None:
        return f"{facts.count}, {format_percent(facts.apart, 2)} apart"
    if not facts.note:
        return MISSING
    if facts.known is None:
        return "1 of unknown spread"
    return f"1, spread {format_percent(facts.known, 2)}"


def _n_samples(record: Record) -> str:
    value = _headline(record)
    return MISSING if value is None else str(value.n)


def _name(column: Column, n_runs: int) -> str:
    texts = set(column.cells)
    if column.header not in {"strategy", "workload"} or len(texts) != 1:
        return column.header
    in_every_run = " in every run" if n_runs > 1 else ""
    return f"{column.header} ({texts.pop()}{in_every_run})"


def _share(n: int, total: int) -> str:
    return "" if n == total else f" in {n} of {total} runs"
