"""The gate: each run is held against the accepted sessions before it, in the test that made it (rule A)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as changed
from functools import cached_property
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts.against_history import (
    Comparison,
    compare,
    compare_counted,
    confirm,
    p_limit,
)
from pytest_llmperf.core.verdicts.judge import Finding, Outcome, keep
from pytest_llmperf.errors import StoreError, UsageError
from pytest_llmperf.gate import words
from pytest_llmperf.gate.accepted import held, unmeasured
from pytest_llmperf.gate.calibration import Calibrated, read_calibrations
from pytest_llmperf.gate.waivers import Waivers, read_waivers
from pytest_llmperf.gate.words import Gated
from pytest_llmperf.settings.limits import COUNTED, DEFAULT_LIMITS

if TYPE_CHECKING:
    from pytest_llmperf.history.accept import Reviewed
    from pytest_llmperf.history.store import Store
    from pytest_llmperf.settings.settings import Settings

Again = Callable[[], Sequence[Record]]


class Regression(AssertionError):
    """A measured value is worse than its history allows. The test that measured it fails."""


# pytest prints the module of any other before the message, and cuts the message for it.
Regression.__module__ = "builtins"


class Gate:
    """Judges the runs of a session.

    It knows how many series share the session's error, and how many have failed.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Callable[[], Store | None],
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._limits = dict(settings.gate or {})
        self._store = store
        self._note = note
        self._clock = clock
        self._again_s = 0.0
        self._n_judged = self._n_failed = self._n_compared = 0
        self.planned_tests = 1

    def judge(
        self, records: Sequence[Record], own_limits: Mapping[str, float], again: Again
    ) -> None:
        """Judge every gated metric of the records of one run (or of both sides of a comparison).

        A suspected regression is measured once more: `again` does so in a fresh worker and gives
        the records in the same order. When the session has used its time for that, suspicions stay
        undecided.

        Raises:
            Regression: one of them failed, or is not comparable or undecided where the session
                forbids that.
            UsageError: a baseline holds values that nothing can be compared with.
        """
        gated = [
            each
            for at, record in enumerate(records)
            for each in self._gated(at, record, own_limits)
        ]
        if any(_failed(each) for each in gated):
            gated = self._measured_again(gated, again)
        self._n_failed += sum(map(_failed, gated))
        self._n_compared += sum(each.found is not None for each in gated)
        self.keep([self._finding(self._waived(each)) for each in gated])

    def missing(self, test: str, session_id: str, made: Sequence[Record]) -> None:
        """Say which runs of the test's last accepted session it has not made again.

        For a test that passed.

        Raises Regression where the session requires a baseline for everything.
        """
        store = self._store()
        if store is None:
            return
        try:
            gone = unmeasured(store, self._reviewed, test, session_id, made)
        except StoreError as error:
            self._note(f"{test}: whether it still measures what it did was not looked at: {error}")
            return
        self.keep([words.gone(record, strict=self._settings.require_baseline) for record in gone])

    def take_compared(self) -> int:
        """How many series were compared with a baseline since last asked."""
        taken, self._n_compared = self._n_compared, 0
        return taken

    @cached_property
    def _reviewed(self) -> Reviewed:
        # SQLAlchemy, only where something is gated.
        from pytest_llmperf.history import accept  # noqa: PLC0415

        return accept.reviewed(self._settings.root)

    @cached_property
    def _waivers(self) -> Waivers:
        return read_waivers(self._settings.waivers)

    @cached_property
    def _calibrated(self) -> tuple[Calibrated, ...]:
        return read_calibrations(self._settings.root)

    def keep(self, findings: Sequence[Finding]) -> None:
        """Add findings to those of the running test. Raises Regression if one of them is a failure."""
        failed = [finding for finding in map(keep, findings) if not finding]
        if failed:
            raise Regression(
                "\n".join(line for finding in failed for line in (finding.text, finding.detail))
            )

    def _limits_of(self, record: Record, own: Mapping[str, float]) -> dict[str, float]:
        """The limits of the metrics that the record has: the marker's, the session's, the calibrated ones, the defaults."""
        floors = {each.metric: each for each in self._calibrated if each.covers(record)}
        asked = {} if self._limits == DEFAULT_LIMITS else self._limits
        default = (
            {}
            if asked
            else DEFAULT_LIMITS
            | {name: each.floor for name, each in floors.items() if name in DEFAULT_LIMITS}
        )
        limits = default | asked | dict(own)
        for name, each in floors.items():
            if limits.get(name, each.floor) < each.floor:
                self._note(words.below_floor(record.test, name, limits[name], each))
        known = {metric.name for metric in record.metrics}
        return {name: limit for name, limit in limits.items() if name in known}

    def _gated(self, at: int, record: Record, own: Mapping[str, float]) -> list[Gated]:
        limits = self._limits_of(record, own)
        metrics = {metric.name: metric for metric in record.metrics}
        found = []
        for name, limit in limits.items():
            against = held(self._store(), self._reviewed, record, metrics[name])
            each = Gated(
                at=at, record=record, metric=metrics[name], limit=limit, held=against, found=None
            )
            value = each.metric.value
            if value is not None and against.accepted.values:
                each = changed(
                    each, found=self._compared(each, value, len(limits.keys() - COUNTED))
                )
            found.append(each)
        return found

    def _compared(self, each: Gated, value: float, n_metrics: int) -> Comparison:
        direction: Any = each.metric.direction
        accepted = each.held.accepted
        try:
            if each.metric.name in COUNTED:
                return compare_counted(value, accepted, direction=direction, floor=each.limit)
            self._n_judged += 1
            family = max(self.planned_tests * n_metrics, self._n_judged)
            limit = p_limit(family, min(self._n_failed, family - 1))
            return compare(value, accepted, direction=direction, floor=each.limit, limit=limit)
        except UsageError as error:
            raise UsageError(
                f"{each.metric.name} of {each.record.strategy} cannot be gated: {error}"
            ) from error

    def _measured_again(self, gated: Sequence[Gated], again: Again) -> list[Gated]:
        budget_s = self._settings.again_budget_s
        if self._again_s >= budget_s:
            why = f"undecided: not measured again, the session has used its {budget_s:g} s for that (--llmperf-again-budget)"
            return [_undecided(each, why) for each in gated]
        start = self._clock()
        try:
            records = again()
        finally:
            self._again_s += self._clock() - start
        return [_again(each, records[each.at]) for each in gated]

    def _waived(self, each: Gated) -> Gated:
        waiver = self._waivers.of(each.record, each.metric.name)
        if waiver is None or each.found is None:
            return each
        if each.found.outcome is Outcome.PASS:
            self._note(
                f"{each.record.test}: {each.metric.name} passes again, so the waiver of {waiver.owner} (until {waiver.expires}) "
                f"is needed no more: remove it from {self._waivers.path.name}",
            )
        return changed(each, waiver=waiver) if _failed(each) else each

    def _finding(self, each: Gated) -> Finding:
        if each.found is None:
            return words.not_comparable(each, strict=self._settings.require_baseline)
        finding = words.judged(each, each.found, strict=self._settings.strict)
        if finding.outcome is Outcome.FAIL:
            self._note(
                f"{each.record.test}: if that change was meant, 'llmperf accept {_key(each.record)} --reason …' makes it so",
            )
        elif each.found.again is not None and not _failed(each):
            self._note(
                f"{each.record.test}: not seen again on its second measurement: {finding.text}"
            )
        return finding


def _failed(each: Gated) -> bool:
    return each.found is not None and each.found.outcome is Outcome.FAIL


def _undecided(each: Gated, why: str) -> Gated:
    if each.found is None or not _failed(each):
        return each
    return changed(each, found=replace(each.found, outcome=Outcome.UNDECIDED), why=why)


def _again(each: Gated, record: Record) -> Gated:
    """A suspicion with its second measurement.

    A value that cannot be measured again leaves it undecided.
    """
    if each.found is None or not _failed(each):
        return each
    value = next(
        (metric.value for metric in record.metrics if metric.name == each.metric.name), None
    )
    if value is None:
        return _undecided(each, "undecided: its second measurement had no value")
    accepted = each.held.accepted
    if each.metric.name in COUNTED:
        second = compare_counted(value, accepted, direction=each.found.direction, floor=each.limit)
        return changed(each, found=replace(each.found, outcome=second.outcome, again=second))
    return changed(each, found=confirm(each.found, value, accepted))


def _key(record: Record) -> str:
    # The history is loaded where something is gated.
    from pytest_llmperf.history.identity import series_key  # noqa: PLC0415

    return series_key(record)
