"""What the summary says, as columns and sentences. Pure: from records to text."""

from __future__ import annotations

import math
import re
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
from pytest_llmperf.report.before_after import HEADER as BEFORE_AFTER
from pytest_llmperf.report.before_after import cells as before_after_cells
from pytest_llmperf.report.fastest import top1_agreement
from pytest_llmperf.report.run_names import brief_names, full_names
from pytest_llmperf.report.table import Column, display_width, telling_width

if TYPE_CHECKING:
    from pytest_llmperf.core.change import Change
    from pytest_llmperf.core.record import MetricValue, Record

_STATUS = {"passed": "PASS", "failed": "FAIL", "pass": "PASS", "fail": "FAIL"}
_REFERENCE = "ref"
RATIO = "ratio"
"""Stands for the ratio of two speeds among the metrics that claims are about."""

TOP1 = "top1"
_ASSERTED_RANK = 93
_ELSEWHERE = frozenset({"throughput", "prefill_throughput", TOP1, RATIO})
"""What has a column of its own that is no metric's."""

_SPEED_RATIO = re.compile(r"^(?:prefill_)?throughput of \S+ is [\d.e+-]+x ")


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


def columns(
    records: Sequence[Record], width: int, changes: Sequence[Change] = (), *, verbose: bool
) -> list[Column]:
    """Return all columns that have something to say, the status last.

    Cells are in the order of the records. What tests assert comes first, after what a run was
    before and after. The wider the terminal (`width`), the less the names are shortened.
    """
    verdicts = tuple(status(record.outcome) for record in records)
    before_after = before_after_cells(records, changes)
    all_columns = [
        *_identity_columns(records, width),
        Column(header=BEFORE_AFTER, cells=before_after, rank=95),
        *_number_columns(records, verbose=verbose),
        Column(header="took", cells=tuple(map(took, records)), rank=87, right=True),
        Column(header="verdict", cells=verdicts, rank=None),
    ]
    return [column for column in all_columns if column.rank is None or _says_something(column)]


def _number_columns(records: Sequence[Record], *, verbose: bool) -> list[Column]:
    """Return speed, metrics, agreement and ratio; more of them if `verbose`."""
    speeds = _throughputs(records, brackets=verbose)
    asserted = asserted_metrics(records)
    metrics = _metric_columns(records, asserted, verbose=verbose)
    others = {
        TOP1: _other_column("top-1", tuple(map(_agreement, records)), 75, TOP1 in asserted),
        RATIO: _other_column("ratio", _ratios(records, intervals=verbose), 55, RATIO in asserted),
    }
    by_name = metrics | others
    number_columns = [
        Column(header="tok/s", cells=speeds, rank=None, right=True),
        *(by_name[name] for name in asserted if name in by_name),
        *(column for name, column in by_name.items() if name not in asserted),
    ]
    if verbose:
        n_samples = tuple(map(_n_samples, records))
        number_columns.append(Column(header="samples", cells=n_samples, rank=30, right=True))
        processes = tuple(map(processes_text, records))
        number_columns.append(Column(header="processes", cells=processes, rank=29, right=True))
    return number_columns


def asserted_metrics(records: Sequence[Record]) -> list[str]:
    """Return the metrics that the tests' claims are about, and RATIO, in their order.

    A claim begins with what it is about: 'ttft.p50 of bf16 is …'.
    """
    claims = [claim.text for record in records for claim in record.claims]
    names = dict.fromkeys(text.partition(" of ")[0] for text in claims)
    ratios = [RATIO] if any(_SPEED_RATIO.search(text) for text in claims) else []
    known = {name for record in records for name in (*metrics_of(record), TOP1)}
    return [*(name for name in names if name in known), *ratios]


def _metric_columns(
    records: Sequence[Record], asserted: Sequence[str], *, verbose: bool
) -> dict[str, Column]:
    """Return the columns of metrics: those of the table, and those that tests assert."""
    shown = {column.metric: column for column in METRICS}
    names = [column.metric for column in METRICS if verbose or not column.verbose]
    names += [name for name in asserted if name not in (*names, *_ELSEWHERE)]
    return {
        name: _metric_column(
            shown.get(name) or MetricColumn(header=name, metric=name, rank=0),
            records,
            rank=_ASSERTED_RANK if name in asserted else None,
        )
        for name in names
    }


def _other_column(header: str, cells: tuple[str, ...], rank: int, is_asserted: bool) -> Column:
    rank = _ASSERTED_RANK if is_asserted else rank
    return Column(header=header, cells=cells, rank=rank, right=True)


def _says_something(column: Column) -> bool:
    return any(cell != MISSING for cell in column.cells)


def _identity_columns(records: Sequence[Record], width: int) -> list[Column]:
    """Return the columns that say which run a row is."""
    names = brief_names(records)
    strategies = tuple(record.strategy for record in records)
    workloads = tuple(record.workload_text for record in records)
    # A name that is whole can be pasted behind -k: other columns give way first.
    name_floor = max(1, width // 2)
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


def headline(record: Record) -> MetricValue | None:
    """Return a run's speed, as the column tok/s shows it."""
    return metrics_of(record).get(speed_metric(record))


def metrics_of(record: Record) -> dict[str, MetricValue]:
    """Return a run's metrics by name."""
    return {metric.name: metric for metric in record.metrics}


def _throughputs(records: Sequence[Record], *, brackets: bool) -> tuple[str, ...]:
    """Return numbers and intervals, each right-aligned among themselves.

    The unit is the header's. Without `brackets` a lopsided interval is shown by its farther end,
    which is the shorter text.
    """
    headlines = [headline(record) for record in records]
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


def _metric_column(
    column: MetricColumn, records: Sequence[Record], rank: int | None = None
) -> Column:
    def text(metric: MetricValue) -> str:
        return format_value(metric.value or 0.0, metric.unit, column.digits)

    values = (metrics_of(record).get(column.metric) for record in records)
    cells = tuple(_cell(value, text) for value in values)
    return Column(header=column.header, cells=cells, rank=rank or column.rank, right=True)


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
    speed, base = headline(record), headline(reference)
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
    value = headline(record)
    return MISSING if value is None else str(value.n)
