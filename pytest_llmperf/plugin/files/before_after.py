"""Each run beside what was measured before it, for pages that people read: side by side, else its history. Judges nothing new."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmperf.core.format import format_number, format_value
from pytest_llmperf.core.record import NOT_RUNS, MetricValue, Record, speed_metric
from pytest_llmperf.core.verdicts.against_history import (
    MIN_SESSIONS,
    AcceptedValues,
    compare,
    compare_counted,
)
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.gate.accepted import held
from pytest_llmperf.gate.contrast import prediction, side_by_side
from pytest_llmperf.report.markdown import Compared
from pytest_llmperf.report.summary import status
from pytest_llmperf.settings.limits import COUNTED, DEFAULT_LIMITS, parse_gate, parse_limits
from pytest_llmperf.settings.project import find_project

if TYPE_CHECKING:
    from pytest_llmperf.history.accept import Reviewed
    from pytest_llmperf.history.store import Store


def compared(
    records: Iterable[Record],
    store: Store | None,
    reviewed: Reviewed | None,
    limits: Mapping[str, float],
) -> list[Compared]:
    """The limited metrics of each run: against the other version where it was measured with it, else against its history.

    A run without anything before it has one row, that of its speed. The last attempt of a run that was measured again stands
    for it. Without a store there is nothing before.
    """
    runs = [record for record in records if record.workload.get("type") not in NOT_RUNS]
    return [
        row
        for record in _last_attempts(runs)
        for row in _rows(record, store, reviewed, limits or DEFAULT_LIMITS)
    ]


def gate_limits(root: Path, metric: str | None = None) -> Mapping[str, float]:
    """The limits of one metric, of the project's `llmperf_gate`, or the gate's own.

    Raises UsageError.
    """
    if metric is not None:
        return parse_limits(metric, "--metric")
    text = str(find_project(root).ini.get("llmperf_gate", ""))
    return parse_gate(text) or DEFAULT_LIMITS


def _last_attempts(records: Sequence[Record]) -> list[Record]:
    again = {_work(record) for record in records if record.extra.get("attempt", 1) > 1}
    return [
        record
        for record in records
        if record.extra.get("attempt", 1) > 1 or _work(record) not in again
    ]


def _work(record: Record) -> tuple[str, ...]:
    return (record.session_id, record.test, record.label, record.workload_key, record.strategy)


def _rows(
    record: Record, store: Store | None, reviewed: Reviewed | None, limits: Mapping[str, float]
) -> list[Compared]:
    if record.extra.get("against", {}).get("metrics"):
        return [_of_pairs(record, row) for row in side_by_side([record], {})]
    metrics = {metric.name: metric for metric in record.metrics}
    wanted = dict.fromkeys((speed_metric(record), *limits))
    chosen = [name for name in wanted if name in metrics and metrics[name].value is not None]
    rows = [_of_history(record, metrics[name], store, reviewed, limits) for name in chosen]
    return [row for row in rows if row.before] or rows[:1]


def _of_pairs(record: Record, row: Any) -> Compared:
    texts = [
        format_value(value, row.unit) if value is not None else ""
        for value in (row.before, row.after)
    ]
    return _row(
        record,
        row.metric,
        before=texts[0],
        after=texts[1],
        ratio=row.ratio,
        ends=(row.low, row.high),
        verdict=row.outcome,
        reason=row.reason,
    )


def _of_history(
    record: Record,
    metric: MetricValue,
    store: Store | None,
    reviewed: Reviewed | None,
    limits: Mapping[str, float],
) -> Compared:
    after = "" if metric.value is None else format_value(metric.value, metric.unit)
    if (
        metric.value is None
        or store is None
        or reviewed is None
        or metric.direction not in ("higher", "lower")
    ):
        return _row(
            record, metric.name, after=after, verdict=status(record.outcome), reason=metric.reason
        )
    found = held(store, reviewed, record, metric)
    if not found.accepted.values or min(*found.accepted.values, metric.value) <= 0:
        return _row(
            record, metric.name, after=after, verdict=status(record.outcome), reason=found.reason
        )
    return _of_baseline(
        record,
        metric,
        metric.value,
        found.accepted,
        limits.get(metric.name, DEFAULT_LIMITS["throughput"]),
    )


def _of_baseline(
    record: Record, metric: MetricValue, value: float, accepted: AcceptedValues, limit: float
) -> Compared:
    direction: Any = metric.direction
    counted = metric.name in COUNTED
    judge = compare_counted if counted else compare
    outcome = judge(value, accepted, direction=direction, floor=limit).outcome
    center = (
        accepted.values[-1]
        if counted
        else math.exp(math.fsum(map(math.log, accepted.values)) / len(accepted.values))
    )
    seen = None if counted else prediction(accepted.values, value)
    n = len(accepted.values)
    few = (
        f"{n} session{'' if n == 1 else 's'} before; {MIN_SESSIONS} decide"
        if n < MIN_SESSIONS and not counted
        else ""
    )
    return _row(
        record,
        metric.name,
        before=format_value(center, metric.unit),
        after=format_value(value, metric.unit),
        ratio=value / center,
        ends=(None, None)
        if seen is None
        else (math.exp(seen.low), math.exp(seen.high) if seen.high < math.inf else None),
        verdict=outcome.value,
        reason=few if outcome is Outcome.UNDECIDED else "",
    )


def _row(
    record: Record,
    metric: str,
    *,
    after: str,
    verdict: str,
    before: str = "",
    ratio: float | None = None,
    ends: tuple[float | None, float | None] = (None, None),
    reason: str = "",
) -> Compared:
    low, high = ends
    return Compared(
        test=f"{record.test} ({record.label})" if record.label else record.test,
        strategy=record.strategy,
        workload=record.workload_text,
        metric=metric,
        before=before,
        after=after,
        ratio="" if ratio is None else format_value(ratio, "x"),
        interval=""
        if low is None or high is None
        else f"{format_number(low)} to {format_number(high)}",
        verdict=_verdict(verdict, record.outcome),
        reason=reason,
    )


def _verdict(found: str, outcome: str) -> str:
    """FAIL is what a test's failure says.

    What looks worse and failed nothing is called that, with its test's outcome.
    """
    return f"worse, test: {status(outcome)}" if found == "FAIL" != outcome else found
