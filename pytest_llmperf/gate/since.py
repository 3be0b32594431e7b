"""A metric since its accepted sessions: what rule A says of it, and that as a Change. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from pytest_llmperf.core.change import COUNTED as EXACT
from pytest_llmperf.core.change import Change, ratio_fields, run_fields
from pytest_llmperf.core.record import MetricValue, Record
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.against_history import (
    P_SINGLE,
    AcceptedValues,
    Comparison,
    compare,
    compare_counted,
)
from pytest_llmperf.core.verdicts.distributions import t_quantile
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.core.verdicts.reach import (
    MIN_SESSIONS,
)
from pytest_llmperf.settings.limits import COUNTED

CONFIDENCE = 0.99


def judge(
    metric: MetricValue,
    value: float,
    accepted: AcceptedValues,
    *,
    limit: float,
    p_limit: float = P_SINGLE,
    calibrated: float | None = None,
) -> Comparison:
    """Judge a session's value by rule A, a counted one by the latest session alone.

    `limit` is the share that it may be worse by, `calibrated` the spread of fresh runs where it is
    known. Raises UsageError as `compare`.
    """
    direction: Any = metric.direction
    if metric.name in COUNTED:
        return compare_counted(value, accepted, direction=direction, floor=limit)
    return compare(
        value, accepted, direction=direction, floor=limit, limit=p_limit, calibrated=calibrated
    )


def change_since(
    record: Record, metric: MetricValue, accepted: AcceptedValues, comparison: Comparison
) -> Change:
    """The judged value of a record's metric beside the sessions that it was compared with."""
    counted = metric.name in COUNTED
    return Change(
        **run_fields(record),
        **_ratio(comparison, accepted, counted=counted),
        metric=metric.name,
        unit=metric.unit,
        direction=metric.direction,
        before=comparison.center,
        after=comparison.value,
        outcome=comparison.outcome.value,
        how=EXACT if counted else f"{comparison.n} and 1 sessions",
        n_before=comparison.n,
        n_after=1,
        limit=comparison.floor,
        reason=too_few(comparison),
    )


def too_few(comparison: Comparison) -> str:
    """Say how many sessions an undecided comparison lacks; "" where they are enough."""
    if comparison.outcome is not Outcome.UNDECIDED or comparison.n >= MIN_SESSIONS:
        return ""
    return f"{MIN_SESSIONS} sessions are needed, {_are(comparison.n)} there"


def _are(n: int) -> str:
    return "1 is" if n == 1 else f"{n} are"


def _ratio(comparison: Comparison, accepted: AcceptedValues, *, counted: bool) -> dict[str, Any]:
    if comparison.center is None:
        return {}
    if counted:
        return {"ratio": comparison.value / comparison.center}
    return ratio_fields(prediction(accepted.levels[0], comparison.value))


def prediction(before: Sequence[float], after: float) -> stats.LogRatio:
    """Rule A's interval: one new session against the spread of those before it."""
    n, logs = len(before), list(map(math.log, before))
    center = math.log(after) - statistics.fmean(logs)
    half = math.inf if n < 2 else _half_width(logs)  # noqa: PLR2004
    return stats.LogRatio(center, center - half, center + half, n)


def _half_width(logs: Sequence[float]) -> float:
    """Half of Student's prediction interval: the new value varies, and so does the mean."""
    n, mean = len(logs), statistics.fmean(logs)
    variance = math.fsum((log - mean) ** 2 for log in logs) / (n - 1)
    error = math.sqrt(variance * (1 + 1 / n))
    return t_quantile(1 - (1 - CONFIDENCE) / 2, n - 1) * error
