"""The messages of gate and comparison: a verdict on a metric in two lines. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_llmperf.core.change import Change
from pytest_llmperf.core.format import format_percent, format_value
from pytest_llmperf.core.record import MetricValue, Record
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
    accepted = _counted(comparison.n, gated.sessions.unit)
    return verdict(
        change,
        gated.record,
        f"{value}, {_difference(comparison)} than in {accepted}",
        remark=_second_measurement(comparison),
        evidence=(
            *_numbers(change, comparison),
            gated.why or _undecided(gated, comparison),
            *_circumstances(gated, comparison),
            _answered_by(gated.waiver),
        ),
        smallest_visible=comparison.smallest_visible,
        more_samples=comparison.more_sessions,
        strict=strict,
    )


def not_comparable(gated: GatedMetric, *, strict: bool) -> Finding:
    """A metric that nothing was compared with, and why."""
    statement = _value_statement(gated)
    return _not_held_against_history(
        statement,
        text=f"{statement}, not compared with history: {_why_not_compared(gated)}",
        detail=f"{where(gated.record)}; recorded",
        strict=strict,
    )


def gone(record: Record, *, strict: bool) -> Finding:
    """A run that an earlier session made, and that this one has no counterpart of."""
    run = f"{record.workload_text} of {record.strategy}"
    return _not_held_against_history(
        run,
        text=_not_measured_any_more(run, record),
        detail=_how_to_accept_removal(record),
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
    return f"{test}: is this change intended? Run: llmperf accept {series} --reason '…'"


def needless_waiver(test: str, metric: str, waiver: Waiver, file: str) -> str:
    """A waiver of a metric that passes."""
    return (
        f"{test}: {metric} passes again, so the waiver of {waiver.owner} "
        f"(until {waiver.expires}) is needed no more: remove it from {file}"
    )


def _not_held_against_history(statement: str, *, text: str, detail: str, strict: bool) -> Finding:
    """The finding of something that was not compared with accepted sessions."""
    return Finding(
        outcome=Outcome.NOT_COMPARABLE,
        text=text,
        detail=detail,
        left=statement,
        right="history",
        strict=strict,
    )


def _value_statement(gated: GatedMetric) -> str:
    """What the metric is, or that it could not be measured."""
    return f"{title(gated.metric.name, gated.record)} {_predicate(gated.metric)}"


def _predicate(metric: MetricValue) -> str:
    if metric.value is None:
        return "could not be measured"
    return f"is {format_value(metric.value, metric.unit)}"


def _why_not_compared(gated: GatedMetric) -> str:
    if gated.metric.value is None:
        return _why_not_measured(gated.metric.reason, gated.sessions.accepted.n)
    return gated.sessions.reason


def _why_not_measured(reason: str, n_sessions: int) -> str:
    if not n_sessions:
        return reason
    return f"{reason or 'no reason was given'}; {_sessions(n_sessions)} had it"


def _not_measured_any_more(run: str, record: Record) -> str:
    return (
        f"{run} was not measured any more: the session of {record.created[:19]} had it, "
        "so nothing was compared"
    )


def _how_to_accept_removal(record: Record) -> str:
    return (
        "recorded nothing in its place; if that was meant: "
        f"'llmperf accept --removed {record.test} --reason …'"
    )


def _difference(comparison: Comparison) -> str:
    change = comparison.change or 0.0
    return f"{format_percent(abs(change), 3)} {'less' if change < 0 else 'more'}"


def _sessions(n: int) -> str:
    return _counted(n, "session")


def _counted(n: int, unit: str) -> str:
    return f"{n} {unit}{'' if n == 1 else 's'}"


def _second_measurement(comparison: Comparison) -> str:
    second = comparison.again
    if second is None:
        return ""
    times = "" if second.n_runs == 1 else f" {second.n_runs} times"
    together = f"{_together(comparison)}; " if comparison.together else ""
    return f"  ({together}measured again{times}: {_difference(second)}{_refutation(second)})"


def _together(comparison: Comparison) -> str:
    return f"the last {comparison.together} sessions together are worse"


def _refutation(second: Comparison) -> str:
    return "" if second.outcome is Outcome.FAIL else ", not seen again"


def _numbers(change: Change, comparison: Comparison) -> list[str]:
    accepted = _accepted_level(change)
    if comparison.spread is None:
        return [accepted]
    spread = format_percent(comparison.spread, 2)
    smallest = visible(comparison.smallest_visible)
    return [f"{accepted}, spread {spread}", smallest, _refuted(comparison), _p_value(comparison)]


def _refuted(comparison: Comparison) -> str:
    """What a PASS excludes."""
    decisive = comparison.again or comparison
    if comparison.outcome is not Outcome.PASS or decisive.refuted is None:
        return ""
    return f"more than {format_percent(decisive.refuted, 2)} worse is refuted"


def _circumstances(gated: GatedMetric, comparison: Comparison) -> Iterator[str]:
    """What stands in the way of the comparison, and what else has changed since."""
    yield from gated.sessions.remarks
    is_worse = comparison.suspected or comparison.outcome is Outcome.FAIL
    if is_worse and gated.sessions.changed:
        yield f"changed since the newest accepted session: {gated.sessions.changed}"


def _accepted_level(change: Change) -> str:
    return f"accepted {format_value(change.before or 0.0, change.unit)}"


def _p_value(comparison: Comparison) -> str:
    """The p and what it had to reach; "" for a comparison without it, or one that passes."""
    decisive = comparison.again or comparison
    p, limit = decisive.p, decisive.p_limit
    if p is None or limit is None or comparison.outcome is Outcome.PASS:
        return ""
    return f"p = {p:.2g} (limit {limit:.2g})"


def _answered_by(waiver: Waiver | None) -> str:
    if waiver is None:
        return ""
    return f"waived by {waiver.owner} until {waiver.expires}: {waiver.reason}"


def _undecided(gated: GatedMetric, comparison: Comparison) -> str:
    if comparison.outcome is not Outcome.UNDECIDED:
        return ""
    return f"undecided: {too_few(comparison) or _what_was_not_seen(gated, comparison)}"


def _what_was_not_seen(gated: GatedMetric, comparison: Comparison) -> str:
    """A change that sessions differ by, or a worsening that this session does not exclude."""
    decisive = comparison.again or comparison
    if (decisive.worse or 0.0) > gated.limit:
        return _what_would_decide(decisive.more_sessions)
    if decisive.refuted is None or decisive.must_refute is None:
        return "sessions differ by more than this change"
    return (
        f"up to {format_percent(decisive.refuted, 2)} worse cannot be excluded, "
        f"and a PASS excludes {format_percent(decisive.must_refute, 2)}"
    )


def _what_would_decide(more_sessions: int | None) -> str:
    if more_sessions is None:
        return "sessions differ by more than this change"
    return f"with {_sessions(more_sessions)} more, such a change would be seen"
