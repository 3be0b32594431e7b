"""`llmperf compare A B`: two sets of stored records as changes of metrics. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from operator import truediv

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.core.change import Change, ratio_fields, run_fields, stored_changes
from pytest_llmperf.core.environment import differences
from pytest_llmperf.core.record import MetricValue, Record, speed_metric
from pytest_llmperf.core.recorded_ratio import paired_processes, recorded_ratio
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.against_history import AcceptedValues
from pytest_llmperf.core.verdicts.case import interleaved_text
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.core.verdicts.processes import NEAR, UNKNOWN
from pytest_llmperf.core.verdicts.side_by_side import MARGIN
from pytest_llmperf.gate.since import CONFIDENCE, change_since, judge
from pytest_llmperf.settings.limits import COUNTED, DEFAULT_LIMITS

_SPEEDS = ("throughput", "prefill_throughput")
MATCHED = ("test", "label", "workload_key", "strategy", "engine")
"""What rows of A and B have in common. A single record on each side needs only the same work."""


def contrast(
    before: Sequence[Record], after: Sequence[Record], limits: Mapping[str, float]
) -> list[Change]:
    """Compare each metric of each thing that was measured on both sides, or on one.

    Without limits: the speed of the work.
    """
    old_groups, new_groups = _grouped(before), _grouped(after)
    if len(old_groups) == len(new_groups) == 1:
        (old,), (new,) = old_groups.values(), new_groups.values()
        return list(_changes(old, new, limits))
    return [
        change
        for key in dict.fromkeys([*old_groups, *new_groups])
        for change in _changes(old_groups.get(key, []), new_groups.get(key, []), limits)
    ]


def side_by_side(records: Sequence[Record], limits: Mapping[str, float]) -> list[Change]:
    """What --llmperf-against found when these records were made: rule B's own verdicts."""
    return [
        change
        for record in records
        for change in stored_changes(record)
        if not limits or change.metric in limits
    ]


def _grouped(records: Sequence[Record]) -> dict[tuple[str, ...], list[Record]]:
    """Runs by what was measured, in order of first appearance.

    Records without metrics that compare are left out.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if _has_speed(record):
            groups.setdefault(_group_key(record), []).append(record)
    return groups


def _has_speed(record: Record) -> bool:
    return any(metric.name in (*_SPEEDS, speed_metric(record)) for metric in record.metrics)


def _group_key(record: Record) -> tuple[str, ...]:
    return tuple(getattr(record, name) for name in MATCHED)


def _changes(
    before: Sequence[Record], after: Sequence[Record], limits: Mapping[str, float]
) -> Iterator[Change]:
    for name, limit in (limits or _speed_limit((after or before)[0])).items():
        yield _compared(_Sides(before=before, after=after, metric=name, limit=limit))


def _speed_limit(record: Record) -> dict[str, float]:
    """The default limit of the speed of the record's work."""
    return {speed_metric(record): DEFAULT_LIMITS["throughput"]}


class _Sides(Struct, frozen=True, kw_only=True):
    """One metric of the records of one thing, before and after; a side may be empty."""

    before: Sequence[Record]
    after: Sequence[Record]
    metric: str
    limit: float

    @property
    def newest(self) -> tuple[Record, Record]:
        """The newest record of each side."""
        return self.before[-1], self.after[-1]

    @property
    def values(self) -> tuple[list[float], list[float]]:
        """The session values of each side."""
        return _session_values(self.before, self.metric), _session_values(self.after, self.metric)

    @property
    def in_turn(self) -> bool:
        """Whether both sides are one record, which `llm.compare` measured in turn."""
        if len(self.before) != 1 or len(self.after) != 1:
            return False
        return _were_measured_in_turn(*self.newest)


def _were_measured_in_turn(old: Record, new: Record) -> bool:
    """Whether two records are the sides of one comparison."""
    together = old.paired_with is not None and old.paired_with == new.paired_with
    return together and old.id != new.id


def _compared(sides: _Sides) -> Change:
    reason = _incomparable(sides)
    if reason:
        return _change(sides, reason=reason)
    return _paired(sides) or _unpaired(sides)


def _incomparable(sides: _Sides) -> str:
    """Why nothing can be compared, with the names of what differs; "" if it can."""
    if not sides.before or not sides.after:
        return f"it was measured {'after' if sides.after else 'before'} only"
    return _not_the_same(sides) or _not_measured(sides) or _other_definition(sides)


def _not_the_same(sides: _Sides) -> str:
    return _other_work(sides) or _other_environment(sides)


def _other_work(sides: _Sides) -> str:
    old, new = sides.newest
    if old.workload_key == new.workload_key:
        return ""
    return f"another workload: workload_text is {new.workload_text!r}, was {old.workload_text!r}"


def _other_environment(sides: _Sides) -> str:
    for records in (sides.before, sides.after):
        if len({record.environment_key for record in records}) > 1:
            return "one side holds runs of several environments: name a session or a record"
    old, new = sides.newest
    facts = differences(new.environment, old.environment)
    listed = ", ".join(f"{name} is {after!r}, was {before!r}" for name, after, before in facts)
    return f"another environment: {listed}" if facts else ""


def _not_measured(sides: _Sides) -> str:
    for record, when in zip(sides.newest, ("before", "after"), strict=True):
        reason = _why_no_value(_metric(record, sides.metric))
        if reason:
            return f"it could not be measured {when}: {reason}"
    return ""


def _why_no_value(metric: MetricValue | None) -> str:
    """Why a record's metric has no value; "" where it has one."""
    if metric is None:
        return "it is not among its metrics"
    return metric.reason or "no reason was given" if metric.value is None else ""


def _other_definition(sides: _Sides) -> str:
    old, new = (_measured(record, sides.metric) for record in sides.newest)
    if (old.formula, old.unit) != (new.formula, new.unit):
        return (
            f"another definition: {new.formula} in {new.unit!r}, was {old.formula} in {old.unit!r}"
        )
    if new.direction not in ("higher", "lower"):
        return "it has no worse side"
    return ""


def _paired(sides: _Sides) -> Change | None:
    """Compare one record on each side that `llm.compare` measured in turn, by their pairs."""
    if not sides.in_turn:
        return None
    before, after = (record.samples.get(sides.metric, ()) for record in sides.newest)
    if not before or len(before) != len(after) or min(*before, *after) <= 0:
        return None
    old, new = sides.newest
    log_ratio = recorded_ratio(new, old, sides.metric, paired=True)
    processes = paired_processes(new, old, sides.metric)
    ratios = tuple(map(truediv, after, before))
    change = _by_interval(sides, log_ratio, how=interleaved_text(len(ratios), ratios, processes))
    return _of_unknown_spread(change) if processes.is_unknown else change


def _of_unknown_spread(change: Change) -> Change:
    """Leave open what lies near the limit, where nobody knows how much processes differ."""
    assert change.ratio is not None  # noqa: S101 - `_by_interval` gave it
    sign = -1 if change.direction == "higher" else 1
    distance = sign * math.log(change.ratio) - _log_limit(change.limit, change.direction)
    if abs(distance) > math.log1p(NEAR):
        return change
    return replace(change, outcome=Outcome.UNDECIDED.value, reason=UNKNOWN)


def _unpaired(sides: _Sides) -> Change:
    """Compare session values: a single new one by rule A, several by Welch's interval."""
    before, after = sides.values
    if min(*before, *after) <= 0:
        return _change(sides, reason="a ratio needs positive values")
    if sides.metric in COUNTED or len(after) == 1:
        return _since_sessions(sides, before, after[-1])
    log_ratio = stats.log_ratio_interval(after, before, paired=False, confidence=CONFIDENCE)
    return _by_interval(sides, log_ratio, how=f"{len(before)} and {len(after)} sessions")


def _since_sessions(sides: _Sides, before: Sequence[float], value: float) -> Change:
    new = sides.after[-1]
    metric = _measured(new, sides.metric)
    accepted = AcceptedValues(values=tuple(before))
    comparison = judge(metric, value, accepted, limit=sides.limit)
    change = change_since(new, metric, accepted, comparison)
    return replace(change, strategy=_strategy(sides))


def _by_interval(sides: _Sides, log_ratio: stats.LogRatio, *, how: str) -> Change:
    direction = _measured(sides.after[-1], sides.metric).direction
    outcome = _interval_outcome(log_ratio, direction, sides.limit)
    return replace(_change(sides), outcome=outcome.value, how=how, **ratio_fields(log_ratio))


def _interval_outcome(log_ratio: stats.LogRatio, direction: str, limit: float) -> Outcome:
    """FAIL: worse for sure, and by more than the limit.

    PASS: a worsening by the limit + 2 % is excluded, as in rule B.
    """
    sign = -1 if direction == "higher" else 1
    low, high = sorted((sign * log_ratio.low, sign * log_ratio.high))
    if low > 0 and sign * log_ratio.center > _log_limit(limit, direction):
        return Outcome.FAIL
    excluded = high < _log_limit(limit + MARGIN, direction)
    return Outcome.PASS if excluded else Outcome.UNDECIDED


def _log_limit(limit: float, direction: str) -> float:
    """The limit as a log ratio, positive where the metric is worse."""
    return -math.log1p(-limit) if direction == "higher" else math.log1p(limit)


def _change(sides: _Sides, *, reason: str = "") -> Change:
    """Both sides' values, not compared (yet)."""
    record = (sides.after or sides.before)[-1]
    metric = _metric(record, sides.metric)
    before, after = sides.values
    return Change(
        **run_fields(record) | {"strategy": _strategy(sides)},
        metric=sides.metric,
        unit=metric.unit if metric else "",
        direction=metric.direction if metric else "",
        before=statistics.median(before) if before else None,
        after=statistics.median(after) if after else None,
        outcome=Outcome.NOT_COMPARABLE.value,
        n_before=len(before),
        n_after=len(after),
        limit=sides.limit,
        reason=reason,
    )


def _strategy(sides: _Sides) -> str:
    """The strategy, or both where a run is compared with one of another strategy."""
    strategies = [records[-1].strategy for records in (sides.before, sides.after) if records]
    return " -> ".join(dict.fromkeys(strategies))


def _session_values(records: Sequence[Record], name: str) -> list[float]:
    """The median of each session, oldest first.

    Repetitions of one process share what makes processes differ.
    """
    sessions: dict[str, list[float]] = {}
    for record in sorted(records, key=lambda record: record.created):
        metric = _metric(record, name)
        if metric is not None and metric.value is not None:
            sessions.setdefault(record.session_id, []).append(metric.value)
    return [statistics.median(values) for values in sessions.values()]


def _metric(record: Record, name: str) -> MetricValue | None:
    return next((metric for metric in record.metrics if metric.name == name), None)


def _measured(record: Record, name: str) -> MetricValue:
    metric = _metric(record, name)
    assert metric is not None  # noqa: S101 - `_not_measured` saw it
    return metric
