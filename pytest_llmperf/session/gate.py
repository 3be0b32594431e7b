"""The gate: each run is held against the accepted sessions before it, in the test that made it (rule A)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from pytest_llmperf.core.format import format_percent, format_value
from pytest_llmperf.core.judge import Finding, Outcome, keep
from pytest_llmperf.core.record import MetricValue, Record
from pytest_llmperf.core.rule_a import MIN_SESSIONS, Comparison, compare, compare_counted, confirm, p_limit
from pytest_llmperf.errors import UsageError
from pytest_llmperf.session.gate_history import Held, held
from pytest_llmperf.session.gate_limits import COUNTED

if TYPE_CHECKING:
    from pytest_llmperf.history.accept import Acceptance
    from pytest_llmperf.history.store import Store

Again = Callable[[], Sequence[Record]]


class Regression(AssertionError):
    """A measured value is worse than its history allows. The test that measured it fails."""


Regression.__module__ = "builtins"  # pytest prints the module of any other before the message, and cuts the message for it


@dataclass(frozen=True, kw_only=True)
class _Gated:
    """One metric of one record, its limit, what it is held against, and what came of it (None: nothing was compared)."""

    at: int
    record: Record
    metric: MetricValue
    limit: float
    held: Held
    found: Comparison | None


class Gate:
    """Judges the runs of a session. It knows how many series share the session's error, and how many have failed."""

    def __init__(
        self,
        limits: Mapping[str, float],
        *,
        strict: bool,
        require_baseline: bool,
        store: Callable[[], Store | None],
        root: Path,
        note: Callable[[str], None],
    ) -> None:
        self._limits = dict(limits)
        self._strict = strict
        self._require_baseline = require_baseline
        self._store = store
        self._root = root
        self._note = note
        self._n_judged = self._n_failed = self._n_compared = 0
        self.planned_tests = 1

    def judge(self, records: Sequence[Record], own_limits: Mapping[str, float], again: Again) -> None:
        """Judge every gated metric of the records of one run (or of both sides of a comparison).

        A suspected regression is measured once more: `again` does so in a fresh worker and gives the records in the same order.

        Raises:
            Regression: one of them failed, or is not comparable or undecided where the session forbids that.
            UsageError: a baseline holds values that nothing can be compared with.
        """
        limits = self._limits | dict(own_limits)
        gated = [self._gated(at, record, name, limits) for at, record in enumerate(records) for name in limits]
        if any(each.found is not None and each.found.outcome is Outcome.FAIL for each in gated):
            gated = self._confirmed(gated, again())
        self._n_failed += sum(each.found is not None and each.found.outcome is Outcome.FAIL for each in gated)
        self._n_compared += sum(each.found is not None for each in gated)
        findings = [keep(self._finding(each)) for each in gated]
        failed = [finding for finding in findings if not finding]
        if failed:
            raise Regression("\n".join(line for finding in failed for line in (finding.text, finding.detail)))

    def take_compared(self) -> int:
        """How many series were compared with a baseline since last asked."""
        taken, self._n_compared = self._n_compared, 0
        return taken

    @cached_property
    def _accepted(self) -> tuple[Acceptance, ...]:
        from pytest_llmperf.history import accept  # noqa: PLC0415 - SQLAlchemy, only where something is gated

        return accept.read(self._root)

    def _gated(self, at: int, record: Record, name: str, limits: Mapping[str, float]) -> _Gated:
        metric = next(metric for metric in record.metrics if metric.name == name)
        against = held(self._store(), self._accepted, record, metric)
        each = _Gated(at=at, record=record, metric=metric, limit=limits[name], held=against, found=None)
        if metric.value is None or not against.baseline.values:
            return each
        return _with(each, found=self._compared(each, metric.value, len(limits.keys() - COUNTED)))

    def _compared(self, each: _Gated, value: float, n_metrics: int) -> Comparison:
        direction: Any = each.metric.direction
        baseline = each.held.baseline
        try:
            if each.metric.name in COUNTED:
                return compare_counted(value, baseline, direction=direction, floor=each.limit)
            self._n_judged += 1
            family = max(self.planned_tests * n_metrics, self._n_judged)
            limit = p_limit(family, min(self._n_failed, family - 1))
            return compare(value, baseline, direction=direction, floor=each.limit, limit=limit)
        except UsageError as error:
            raise UsageError(f"{each.metric.name} of {each.record.strategy} cannot be gated: {error}") from error

    def _confirmed(self, gated: Sequence[_Gated], again: Sequence[Record]) -> list[_Gated]:
        return [_again(each, again[each.at]) for each in gated]

    def _finding(self, each: _Gated) -> Finding:
        if each.found is None:
            return _not_comparable(each, strict=self._require_baseline)
        finding = _judged(each, each.found, strict=self._strict)
        if each.found.outcome is Outcome.FAIL:
            self._note(
                f"{each.record.test}: if that change was meant, 'llmperf accept {_key(each.record)} --reason …' makes it so"
            )
        elif each.found.again is not None:
            self._note(f"{each.record.test}: not seen again on its second measurement: {finding.text}")
        return finding


def _with(each: _Gated, *, found: Comparison) -> _Gated:
    return _Gated(at=each.at, record=each.record, metric=each.metric, limit=each.limit, held=each.held, found=found)


def _again(each: _Gated, record: Record) -> _Gated:
    """A suspicion with its second measurement. A value that cannot be measured again leaves it undecided."""
    if each.found is None or each.found.outcome is not Outcome.FAIL:
        return each
    value = next(metric.value for metric in record.metrics if metric.name == each.metric.name)
    if value is None:
        return _with(each, found=replace(each.found, outcome=Outcome.UNDECIDED))
    baseline = each.held.baseline
    if each.metric.name in COUNTED:
        second = compare_counted(value, baseline, direction=each.found.direction, floor=each.limit)
        return _with(each, found=replace(each.found, outcome=second.outcome, again=second))
    return _with(each, found=confirm(each.found, value, baseline))


def _key(record: Record) -> str:
    from pytest_llmperf.history.identity import series_key  # noqa: PLC0415 - the history is loaded where something is gated

    return series_key(record)


# Words


def _not_comparable(each: _Gated, *, strict: bool) -> Finding:
    metric = each.metric
    if metric.value is None:
        seen, n = f"{_title(each)} could not be measured", each.held.baseline.n
        why = f"{metric.reason or 'no reason was given'}; {_sessions(n)} had it" if n else metric.reason
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


def _judged(each: _Gated, found: Comparison, *, strict: bool) -> Finding:
    unit = each.metric.unit
    left = f"{_title(each)} is {format_value(found.value, unit)}, {_change(found)} than the baseline of {_sessions(found.n)}"
    right = f"allowed {format_percent(each.limit, 2)} worse"
    return Finding(
        outcome=found.outcome,
        text=f"{left}, {right}{_again_text(found)}",
        detail="; ".join(part for part in (_where(each), *_numbers(found, unit), _undecided(found)) if part),
        left=left,
        right=right,
        smallest_visible=found.smallest_visible,
        more_samples=found.more_sessions,
        strict=strict,
    )


def _title(each: _Gated) -> str:
    return f"{each.metric.name} of {each.record.strategy}"


def _where(each: _Gated) -> str:
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


def _undecided(found: Comparison) -> str:
    if found.outcome is not Outcome.UNDECIDED:
        return ""
    if found.n < MIN_SESSIONS:
        return f"undecided: {MIN_SESSIONS} sessions are needed, {found.n} are there"
    if found.more_sessions is not None:
        return f"undecided: with {_sessions(found.more_sessions)} more, such a change would be seen"
    return "undecided: sessions differ by more than this change"
