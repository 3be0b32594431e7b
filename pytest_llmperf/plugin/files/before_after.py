"""Each run beside what was measured before it, for pages that people read. Fails nothing.

Before it stands the other version where the run was measured side by side, else its history.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmperf.core.change import Change, run_fields, stored_changes
from pytest_llmperf.core.record import NOT_RUNS, MetricValue, Record, speed_metric
from pytest_llmperf.gate.accepted import accepted_sessions
from pytest_llmperf.gate.past import Question
from pytest_llmperf.gate.since import change_since, judge
from pytest_llmperf.report.summary import status
from pytest_llmperf.settings.limits import DEFAULT_LIMITS, parse_gate, parse_limits
from pytest_llmperf.settings.project import find_project

if TYPE_CHECKING:
    from pytest_llmperf.gate.lineage import Lineage
    from pytest_llmperf.history.accept import Reviewed
    from pytest_llmperf.history.store import Store


def compared(
    records: Iterable[Record],
    store: Store | None,
    reviewed: Reviewed | None,
    limits: Mapping[str, float],
    lineage: Lineage | None = None,
) -> list[Change]:
    """The limited metrics of each run, against the other version or against its history.

    A run without anything before it has one row, that of its speed. The last attempt of a run that
    was measured again stands for it. Without a store there is nothing before.
    """
    limits = limits or DEFAULT_LIMITS
    return [
        change
        for record in _last_attempts(_runs(records))
        for change in _changes(record, store, reviewed, limits, lineage)
    ]


def _changes(
    record: Record,
    store: Store | None,
    reviewed: Reviewed | None,
    limits: Mapping[str, float],
    lineage: Lineage | None,
) -> Sequence[Change]:
    return stored_changes(record) or _since_history(record, store, reviewed, limits, lineage)


def _runs(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.workload.get("type") not in NOT_RUNS]


def gate_limits(root: Path, metric: str | None = None) -> Mapping[str, float]:
    """The limits of one metric, of the project's `llmperf_gate`, or the gate's own.

    Raises UsageError.
    """
    if metric is not None:
        return parse_limits(metric, "--metric")
    return parse_gate(_project_gate(root)) or DEFAULT_LIMITS


def _project_gate(root: Path) -> str:
    return str(find_project(root).ini.get("llmperf_gate", ""))


def _last_attempts(records: Sequence[Record]) -> list[Record]:
    last: dict[tuple[str, ...], int] = {}
    for record in records:
        last[_work(record)] = max(last.get(_work(record), 1), _attempt(record))
    return [record for record in records if _attempt(record) == last[_work(record)]]


def _attempt(record: Record) -> int:
    return int(record.extra.get("attempt", 1))


def _work(record: Record) -> tuple[str, ...]:
    return (record.session_id, record.test, record.label, record.workload_key, record.strategy)


def _since_history(
    record: Record,
    store: Store | None,
    reviewed: Reviewed | None,
    limits: Mapping[str, float],
    lineage: Lineage | None,
) -> list[Change]:
    """The changes since the accepted sessions; where there are none, the first metric alone."""
    changes = []
    for metric in _shown_metrics(record, limits):
        limit = limits.get(metric.name, DEFAULT_LIMITS["throughput"])
        question = Question(record=record, metric=metric, limit=limit, lineage=lineage)
        changes.append(_since_sessions(question, store, reviewed))
    return [change for change in changes if change.before is not None] or changes[:1]


def _shown_metrics(record: Record, limits: Mapping[str, float]) -> list[MetricValue]:
    """The speed and the limited metrics that the record has a value of."""
    metrics = _measured_metrics(record)
    return [metrics[name] for name in _shown_names(record, limits) if name in metrics]


def _shown_names(record: Record, limits: Mapping[str, float]) -> Iterable[str]:
    return dict.fromkeys((speed_metric(record), *limits))


def _measured_metrics(record: Record) -> dict[str, MetricValue]:
    return {metric.name: metric for metric in record.metrics if metric.value is not None}


def _since_sessions(question: Question, store: Store | None, reviewed: Reviewed | None) -> Change:
    record, metric, limit = question.record, question.metric, question.limit
    if store is None or reviewed is None or metric.direction not in ("higher", "lower"):
        return _alone(record, metric, limit, metric.reason)
    sessions = accepted_sessions(store, reviewed, question)
    accepted, value = sessions.accepted, metric.value or 0.0
    if not accepted.values or value <= 0:
        return _alone(record, metric, limit, sessions.reason)
    comparison = judge(metric, value, accepted, limit=limit)
    return change_since(record, metric, accepted, comparison)


def _alone(record: Record, metric: MetricValue, limit: float, reason: str) -> Change:
    """A metric with nothing before it, under its test's outcome."""
    return Change(
        **run_fields(record),
        metric=metric.name,
        unit=metric.unit,
        direction=metric.direction,
        after=metric.value,
        outcome=status(record.outcome),
        n_after=1,
        limit=limit,
        reason=reason,
    )
