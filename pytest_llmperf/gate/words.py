"""The messages of gate and comparison: a verdict on a metric in two lines. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_llmperf.core.change import Change
from pytest_llmperf.core.format import format_percent, format_value
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts.against_history import Comparison
from pytest_llmperf.core.verdicts.judge import Finding, Outcome
from pytest_llmperf.gate.gated import GatedMetric
from pytest_llmperf.gate.since import too_few

if TYPE_CHECKING:
    from pytest_llmperf.gate.calibration import Calibrated
    from pytest_llmperf.gate.waivers import Waiver


# What every verdict on a change says, whatever it was compared with


def verdict(
    change: Change,
    record: Record,
    statement: str,
    *,
    remark: str = "",
    evidence: Iterable[str] = (),
    smallest_visible: float | None = None,
    more_samples: int | None = None,
    strict: bool,
) -> Finding:
    """The finding of a compared metric.

    Its first line is `statement`, what was allowed, and a `remark`; its second the work, the device
    and the `evidence`, of which empty parts are left out.
    """
    claim = f"{title(change.metric, record)} is {statement}"
    allowance = f"allowed {format_percent(change.limit, 2)} worse"
    return Finding(
        outcome=Outcome(change.outcome),
        text=f"{claim}, {allowance}{remark}",
        detail="; ".join(filter(None, (where(record), *evidence))),
        left=claim,
        right=allowance,
        smallest_visible=smallest_visible,
        more_samples=more_samples,
        strict=strict,
    )


def title(metric: str, record: Record) -> str:
    """The metric, and the strategy that it was measured under."""
    return f"{metric} of {record.strategy}"


def where(record: Record) -> str:
    """The work and the device."""
    facts = record.environment.facts
    device = facts.get("device_name") or facts.get("device") or "this machine"
    return f"{record.workload_text} on {device}"


def visible(smallest: float | None) -> str:
    """The smallest change that would have been seen; "" where none would."""
    if smallest is None:
        return ""
    return f"smallest visible change {format_percent(smallest, 2)}"


# What the gate says


def judged(gated: GatedMetric, comparison: Comparison, *, strict: bool) -> Finding:
    """A compared metric: how it changed, what was allowed, what could have been seen."""
    change = gated.change(comparison)
    if gated.waiver is not None:
        change = replace(change, outcome=Outcome.WAIVED.value)
    value = format_value(comparison.value, change.unit)
    accepted = _sessions(comparison.n, "accepted ")
    return verdict(
        change,
        gated.record,
        f"{value}, {_difference(comparison)} than in {accepted}",
        remark=_second_measurement(comparison),
        evidence=(
            *_numbers(change, comparison),
            gated.why or _undecided(comparison),
            _answered_by(gated.waiver),
        ),
        smallest_visible=comparison.smallest_visible,
        more_samples=comparison.more_sessions,
        strict=strict,
    )


def not_comparable(gated: GatedMetric, *, strict: bool) -> Finding:
    """A metric that nothing was compared with, and why."""
    metric = gated.metric
    subject = title(metric.name, gated.record)
    if metric.value is None:
        statement = f"{subject} could not be measured"
        reason = _unmeasured(gated)
    else:
        statement = f"{subject} is {format_value(metric.value, metric.unit)}"
        reason = gated.sessions.reason
    return Finding(
        outcome=Outcome.NOT_COMPARABLE,
        text=f"{statement}, not compared with history: {reason}",
        detail=f"{where(gated.record)}; recorded",
        left=statement,
        right="history",
        strict=strict,
    )


def gone(record: Record, *, strict: bool) -> Finding:
    """A run that an earlier session made, and that this one has no counterpart of."""
    run = f"{record.workload_text} of {record.strategy}"
    return Finding(
        outcome=Outcome.NOT_COMPARABLE,
        text=(
            f"{run} was not measured any more: the session of {record.created[:19]} had it, "
            "so nothing was compared"
        ),
        detail=(
            "recorded nothing in its place; if that was meant: "
            f"'llmperf accept --removed {record.test} --reason …'"
        ),
        left=run,
        right="history",
        strict=strict,
    )


def below_floor(test: str, metric: str, limit: float, calibrated: Calibrated) -> str:
    """A limit that unchanged sessions exceed."""
    return (
        f"{test}: the limit of {metric}, {format_percent(limit, 2)}, is below the "
        f"{format_percent(calibrated.floor, 2)} calibrated on {calibrated.device} "
        f"on {calibrated.date}: sessions differ by as much without a change"
    )


def how_to_accept(test: str, series: str) -> str:
    """What to do where a failure was no accident."""
    return f"{test}: if that change was meant, 'llmperf accept {series} --reason …' makes it so"


def needless_waiver(test: str, metric: str, waiver: Waiver, file: str) -> str:
    """A waiver of a metric that passes."""
    return (
        f"{test}: {metric} passes again, so the waiver of {waiver.owner} "
        f"(until {waiver.expires}) is needed no more: remove it from {file}"
    )


def _unmeasured(gated: GatedMetric) -> str:
    n = gated.sessions.accepted.n
    if not n:
        return gated.metric.reason
    return f"{gated.metric.reason or 'no reason was given'}; {_sessions(n)} had it"


def _difference(comparison: Comparison) -> str:
    change = comparison.change or 0.0
    return f"{format_percent(abs(change), 3)} {'less' if change < 0 else 'more'}"


def _sessions(n: int, kind: str = "") -> str:
    return f"{n} {kind}session{'' if n == 1 else 's'}"


def _second_measurement(comparison: Comparison) -> str:
    second = comparison.again
    if second is None:
        return ""
    refuted = "" if second.outcome is Outcome.FAIL else ", not seen again"
    return f"  (measured again: {_difference(second)}{refuted})"


def _numbers(change: Change, comparison: Comparison) -> list[str]:
    accepted = f"accepted {format_value(change.before or 0.0, change.unit)}"
    if comparison.spread is None:
        return [accepted]
    return [
        f"{accepted}, spread {format_percent(comparison.spread, 2)}",
        visible(comparison.smallest_visible),
        _p_value(comparison),
    ]


def _p_value(comparison: Comparison) -> str:
    if comparison.p is None or comparison.p_limit is None:
        return ""
    if comparison.outcome is Outcome.PASS:
        return ""
    return f"p = {comparison.p:.2g} (limit {comparison.p_limit:.2g})"


def _answered_by(waiver: Waiver | None) -> str:
    if waiver is None:
        return ""
    return f"waived by {waiver.owner} until {waiver.expires}: {waiver.reason}"


def _undecided(comparison: Comparison) -> str:
    if comparison.outcome is not Outcome.UNDECIDED:
        return ""
    if missing := too_few(comparison):
        return f"undecided: {missing}"
    if comparison.more_sessions is not None:
        more = _sessions(comparison.more_sessions)
        return f"undecided: with {more} more, such a change would be seen"
    return "undecided: sessions differ by more than this change"
