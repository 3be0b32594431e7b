"""`llmperf compare A B`: two sets of stored records, row by row.

Pure, but for the records that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from pytest_llmperf.core.environment import differences
from pytest_llmperf.core.record import MetricValue, Record, speed_metric
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.against_history import (
    MIN_SESSIONS,
    AcceptedValues,
    compare,
    compare_counted,
)
from pytest_llmperf.core.verdicts.distributions import t_quantile
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.core.verdicts.side_by_side import MARGIN
from pytest_llmperf.settings.limits import COUNTED, DEFAULT_LIMITS

MATCHED = ("test", "label", "workload_key", "strategy", "engine")
"""What rows of A and B have in common. A single record on each side needs only the same work."""

_SHOWN = {"workload_key": "workload_text"}
_CONFIDENCE = 0.99


class Row(Struct, frozen=True, kw_only=True):
    """One metric, before and after.

    `ratio` after / before with its 99 % interval; `how` says what it rests on.
    """

    test: str
    label: str
    strategy: str
    workload_text: str
    metric: str
    unit: str
    before: float | None
    after: float | None
    ratio: float | None
    low: float | None
    high: float | None
    outcome: str
    how: str
    n_before: int
    n_after: int
    limit: float
    reason: str = ""


def contrast(
    before: Sequence[Record], after: Sequence[Record], limits: Mapping[str, float]
) -> list[Row]:
    """A row for each metric of each thing that was measured on both sides, or on one.

    Without limits: the speed of the work.
    """
    a, b = _grouped(before), _grouped(after)
    if len(a) == len(b) == 1 and a.keys() != b.keys():
        return _rows(next(iter(a.values())), next(iter(b.values())), limits)
    return [
        row
        for key in dict.fromkeys([*a, *b])
        for row in _rows(a.get(key, []), b.get(key, []), limits)
    ]


def _grouped(records: Sequence[Record]) -> dict[tuple[str, ...], list[Record]]:
    """Runs by what was measured, in order of first appearance.

    Records without metrics that compare are left out.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if any(metric.name in ("throughput", "prefill_throughput") for metric in record.metrics):
            groups.setdefault(tuple(getattr(record, name) for name in MATCHED), []).append(record)
    return groups


def _rows(a: list[Record], b: list[Record], limits: Mapping[str, float]) -> list[Row]:
    some = (b or a)[0]
    chosen = limits or {speed_metric(some): DEFAULT_LIMITS["throughput"]}
    return [_row(a, b, name, limit) for name, limit in chosen.items()]


def _row(a: list[Record], b: list[Record], name: str, limit: float) -> Row:
    if not a or not b:
        return _none(a, b, name, limit, f"it was measured {'after' if b else 'before'} only")
    return (
        _different(a, b, name, limit) or _paired(a, b, name, limit) or _unpaired(a, b, name, limit)
    )


def _different(a: list[Record], b: list[Record], name: str, limit: float) -> Row | None:
    """NOT COMPARABLE, with the names of the keys that differ."""
    old, new = a[-1], b[-1]
    if old.workload_key != new.workload_key:
        return _none(
            a,
            b,
            name,
            limit,
            f"another workload: workload_text is {new.workload_text!r}, was {old.workload_text!r}",
        )
    for one in (a, b):
        if len({record.environment_key for record in one}) > 1:
            return _none(
                a,
                b,
                name,
                limit,
                "one side holds runs of several environments: name a session or a record",
            )
    facts = differences(new.environment, old.environment)
    if facts:
        named = ", ".join(f"{fact} is {here!r}, was {there!r}" for fact, here, there in facts)
        return _none(a, b, name, limit, f"another environment: {named}")
    return _different_metric(a, b, name, limit)


def _different_metric(a: list[Record], b: list[Record], name: str, limit: float) -> Row | None:
    old, new = _metric(a[-1], name), _metric(b[-1], name)
    for metric, when in ((old, "before"), (new, "after")):
        if metric is None or metric.value is None:
            why = "it is not among its metrics" if metric is None else metric.reason
            return _none(
                a,
                b,
                name,
                limit,
                f"it could not be measured {when}: {why or 'no reason was given'}",
            )
    assert old is not None and new is not None  # noqa: S101, PT018 - seen above
    if (old.formula, old.unit) != (new.formula, new.unit):
        return _none(
            a,
            b,
            name,
            limit,
            f"another definition: {new.formula} in {new.unit!r}, was {old.formula} in {old.unit!r}",
        )
    if new.direction not in ("higher", "lower"):
        return _none(a, b, name, limit, "it has no worse side")
    return None


def _paired(a: list[Record], b: list[Record], name: str, limit: float) -> Row | None:
    """One record on each side, measured in turn by `llm.compare`."""
    old, new = a[-1], b[-1]
    together = (
        len(a) == len(b) == 1 and old.paired_with is not None and old.paired_with == new.paired_with
    )
    before, after = old.samples.get(name, ()), new.samples.get(name, ())
    if (
        not together
        or old.id == new.id
        or not before
        or len(before) != len(after)
        or min(*before, *after) <= 0
    ):
        return None
    ratio = stats.log_ratio_interval(after, before, paired=True, confidence=_CONFIDENCE)
    outcome = _by_interval(ratio, _direction(new, name), limit)
    return _made(
        a, b, name, limit, ratio=ratio, outcome=outcome, how=f"{len(after)} pairs, interleaved"
    )


def _unpaired(a: list[Record], b: list[Record], name: str, limit: float) -> Row:
    """Session values: a single new one by rule A, several by Welch's interval."""
    before, after = _session_values(a, name), _session_values(b, name)
    direction: Any = _direction(b[-1], name)
    if min(*before, *after) <= 0:
        return _none(a, b, name, limit, "a ratio needs positive values")
    how = f"{len(before)} and {len(after)} sessions"
    if name in COUNTED:
        found = compare_counted(
            after[-1], AcceptedValues(values=tuple(before)), direction=direction, floor=limit
        )
        exact = stats.LogRatio(*(math.log(after[-1] / before[-1]),) * 3, 1)
        return _made(a, b, name, limit, ratio=exact, outcome=found.outcome, how="counted")
    if len(after) == 1:
        judged = compare(
            after[0], AcceptedValues(values=tuple(before)), direction=direction, floor=limit
        )
        reason = f"{MIN_SESSIONS} sessions before are needed" if len(before) < MIN_SESSIONS else ""
        reason = reason if judged.outcome is Outcome.UNDECIDED else ""
        return _made(
            a,
            b,
            name,
            limit,
            ratio=prediction(before, after[0]),
            outcome=judged.outcome,
            how=how,
            reason=reason,
        )
    ratio = stats.log_ratio_interval(after, before, paired=False, confidence=_CONFIDENCE)
    return _made(
        a, b, name, limit, ratio=ratio, outcome=_by_interval(ratio, direction, limit), how=how
    )


def prediction(before: Sequence[float], after: float) -> stats.LogRatio:
    """Rule A's interval: one new session against the spread of those before it."""
    logs = [math.log(x) for x in before]
    n, center = len(logs), math.log(after) - stats.mean(logs)
    if n < 2:  # noqa: PLR2004
        return stats.LogRatio(center, -math.inf, math.inf, n)
    spread = math.sqrt(math.fsum((x - stats.mean(logs)) ** 2 for x in logs) / (n - 1))
    half = t_quantile(1 - (1 - _CONFIDENCE) / 2, n - 1) * spread * math.sqrt(1 + 1 / n)
    return stats.LogRatio(center, center - half, center + half, n)


def _by_interval(ratio: stats.LogRatio, direction: str, limit: float) -> Outcome:
    """FAIL: worse for sure, and by more than the limit.

    PASS: a worsening by the limit + 2 % is excluded, as in rule B.
    """
    sign = -1 if direction == "higher" else 1
    low, high = sorted((sign * ratio.low, sign * ratio.high))
    if low > 0 and sign * ratio.center > _log(limit, direction):
        return Outcome.FAIL
    return Outcome.PASS if high < _log(limit + MARGIN, direction) else Outcome.UNDECIDED


def _log(worse: float, direction: str) -> float:
    return -math.log1p(-worse) if direction == "higher" else math.log1p(worse)


def _session_values(records: Sequence[Record], name: str) -> list[float]:
    """The median of each session, oldest first: repetitions of one process share what makes processes differ."""
    groups: dict[str, list[float]] = {}
    for record in sorted(records, key=lambda each: each.created):
        metric = _metric(record, name)
        if metric is not None and metric.value is not None:
            groups.setdefault(record.session_id, []).append(metric.value)
    return [stats.median(values) for values in groups.values()]


def _metric(record: Record, name: str) -> MetricValue | None:
    return next((metric for metric in record.metrics if metric.name == name), None)


def _direction(record: Record, name: str) -> str:
    metric = _metric(record, name)
    assert metric is not None  # noqa: S101 - `_different_metric` saw it
    return metric.direction


def _made(
    a: list[Record],
    b: list[Record],
    name: str,
    limit: float,
    *,
    ratio: stats.LogRatio,
    outcome: Outcome,
    how: str,
    reason: str = "",
) -> Row:
    bounded = math.isfinite(ratio.low) and math.isfinite(ratio.high)
    return _plain(
        a,
        b,
        name,
        limit,
        ratio=math.exp(ratio.center),
        low=math.exp(ratio.low) if bounded else None,
        high=math.exp(ratio.high) if bounded else None,
        outcome=outcome.value,
        how=how,
        reason=reason,
    )


def _none(a: list[Record], b: list[Record], name: str, limit: float, reason: str) -> Row:
    outcome = Outcome.NOT_COMPARABLE.value
    return _plain(
        a, b, name, limit, ratio=None, low=None, high=None, outcome=outcome, how="", reason=reason
    )


def _plain(a: list[Record], b: list[Record], name: str, limit: float, **more: Any) -> Row:
    some = (b or a)[-1]
    before, after = _session_values(a, name), _session_values(b, name)
    metric = _metric(some, name)
    return Row(
        test=some.test,
        label=some.label,
        strategy=some.strategy
        if not a or a[-1].strategy == some.strategy
        else f"{a[-1].strategy} -> {some.strategy}",
        workload_text=some.workload_text,
        metric=name,
        unit="" if metric is None else metric.unit,
        before=stats.median(before) if before else None,
        after=stats.median(after) if after else None,
        n_before=len(before),
        n_after=len(after),
        limit=limit,
        **more,
    )


def side_by_side(records: Sequence[Record], limits: Mapping[str, float]) -> list[Row]:
    """What --llmperf-against found when these records were made: its pairs, and its own verdicts (rule B)."""
    rows = []
    for record in records:
        for name, kept in record.extra.get("against", {}).get("metrics", {}).items():
            if not limits or name in limits:
                rows.append(_stored(record, name, kept))
    return rows


def _stored(record: Record, name: str, kept: Mapping[str, Any]) -> Row:
    pairs = kept.get("pairs", ())
    ratio, low, high = kept.get("ratio") or (None, None, None)
    values = [[pair[side] for pair in pairs] for side in (0, 1)]
    return Row(
        test=record.test,
        label=record.label,
        strategy=record.strategy,
        workload_text=record.workload_text,
        metric=name,
        unit=str(kept.get("unit", "")),
        before=stats.median(values[0]) if pairs else None,
        after=stats.median(values[1]) if pairs else None,
        ratio=ratio,
        low=low,
        high=high,
        outcome=str(kept["outcome"]),
        how=f"{len(pairs)} pairs, interleaved" if pairs else "",
        n_before=len(pairs),
        n_after=len(pairs),
        limit=float(kept["limit"]),
        reason=str(kept.get("reason", "")),
    )
