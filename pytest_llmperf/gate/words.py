"""What the gate says: each judged metric in two lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmperf.core.format import format_percent, format_value
from pytest_llmperf.core.record import MetricValue, Record
from pytest_llmperf.core.verdicts.against_history import MIN_SESSIONS, Comparison
from pytest_llmperf.core.verdicts.judge import Finding, Outcome
from pytest_llmperf.gate.accepted import Held

if TYPE_CHECKING:
    from pytest_llmperf.gate.calibration import Calibrated
    from pytest_llmperf.gate.waivers import Waiver


@dataclass(frozen=True, kw_only=True)
class Gated:
    """One metric of one record, its limit, what it is held against, and what came of it (None: nothing was compared).

    `why` says why a suspicion was left undecided, `waiver` who answers for a failure.
    """

    at: int
    record: Record
    metric: MetricValue
    limit: float
    held: Held
    found: Comparison | None
    why: str = ""
    waiver: Waiver | None = None


def not_comparable(each: Gated, *, strict: bool) -> Finding:
    """A metric that nothing was compared with, and why."""
    metric = each.metric
    if metric.value is None:
        seen, n = f"{_title(each)} could not be measured", each.held.accepted.n
        why = (
            f"{metric.reason or 'no reason was given'}; {_sessions(n)} had it"
            if n
            else metric.reason
        )
    else:
        seen, why = f"{_title(each)} is {format_value(metric.value, metric.unit)}", each.held.reason
    return Finding(
        outcome=Outcome.NOT_COMPARABLE,
        text=f"{seen}, not compared with history: {why}",
        detail=f"{_where(each)}; recorded",
        left=seen,
        right="history",
        strict=strict,
    )


def gone(record: Record, *, strict: bool) -> Finding:
    """A run that an earlier session made, and that this one has no counterpart of."""
    seen = f"{record.workload_text} of {record.strategy}"
    return Finding(
        outcome=Outcome.NOT_COMPARABLE,
        text=f"{seen} was not measured any more: the session of {record.created[:19]} had it, so nothing was compared",
        detail=f"recorded nothing in its place; if that was meant: 'llmperf accept --removed {record.test} --reason …'",
        left=seen,
        right="history",
        strict=strict,
    )


def below_floor(test: str, metric: str, limit: float, calibrated: Calibrated) -> str:
    """A limit that unchanged sessions exceed."""
    return (
        f"{test}: the limit of {metric}, {format_percent(limit, 2)}, is below the {format_percent(calibrated.floor, 2)} "
        f"calibrated on {calibrated.device} on {calibrated.date}: sessions differ by as much without a change"
    )


def judged(each: Gated, found: Comparison, *, strict: bool) -> Finding:
    """A compared metric: how it changed, what was allowed, what could have been seen."""
    unit = each.metric.unit
    left = f"{_title(each)} is {format_value(found.value, unit)}, {_change(found)} than the baseline of {_sessions(found.n)}"
    right = f"allowed {format_percent(each.limit, 2)} worse"
    return Finding(
        outcome=Outcome.WAIVED if each.waiver is not None else found.outcome,
        text=f"{left}, {right}{_again_text(found)}",
        detail="; ".join(
            part
            for part in (
                _where(each),
                *_numbers(found, unit),
                each.why or _undecided(found),
                _waived(each),
            )
            if part
        ),
        left=left,
        right=right,
        smallest_visible=found.smallest_visible,
        more_samples=found.more_sessions,
        strict=strict,
    )


def _title(each: Gated) -> str:
    return f"{each.metric.name} of {each.record.strategy}"


def _where(each: Gated) -> str:
    facts = each.record.environment.facts
    return f"{each.record.workload_text} on {facts.get('device_name') or facts.get('device') or 'this machine'}"


def _change(found: Comparison) -> str:
    change = found.change or 0.0
    return f"{format_percent(abs(change), 3)} {'less' if change < 0 else 'more'}"


def _sessions(n: int) -> str:
    return f"{n} session{'' if n == 1 else 's'}"


def _again_text(found: Comparison) -> str:
    if found.again is None:
        return ""
    seen = "" if found.again.outcome is Outcome.FAIL else ", not seen again"
    return f"  (measured again: {_change(found.again)}{seen})"


def _numbers(found: Comparison, unit: str) -> list[str]:
    baseline = f"baseline {format_value(found.center or 0.0, unit)}"
    if found.spread is None:
        return [baseline]
    numbers = [f"{baseline}, spread {format_percent(found.spread, 2)}"]
    if found.smallest_visible is not None:
        numbers.append(f"smallest visible change {format_percent(found.smallest_visible, 2)}")
    if found.p is not None and found.p_limit is not None and found.outcome is not Outcome.PASS:
        numbers.append(f"p = {found.p:.2g} (limit {found.p_limit:.2g})")
    return numbers


def _waived(each: Gated) -> str:
    waiver = each.waiver
    return (
        ""
        if waiver is None
        else f"waived by {waiver.owner} until {waiver.expires}: {waiver.reason}"
    )


def _undecided(found: Comparison) -> str:
    if found.outcome is not Outcome.UNDECIDED:
        return ""
    if found.n < MIN_SESSIONS:
        return f"undecided: {MIN_SESSIONS} sessions are needed, {found.n} are there"
    if found.more_sessions is not None:
        return f"undecided: with {_sessions(found.more_sessions)} more, such a change would be seen"
    return "undecided: sessions differ by more than this change"
