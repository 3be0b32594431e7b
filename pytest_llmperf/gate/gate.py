"""The gate: each run is held against the accepted sessions before it, by rule A."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace as changed
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_llmperf.core.change import Change
from pytest_llmperf.core.record import MetricValue, Record
from pytest_llmperf.core.verdicts.against_history import (
    P_SINGLE,
    Comparison,
    p_limit,
)
from pytest_llmperf.core.verdicts.judge import Finding, Outcome, keep
from pytest_llmperf.core.verdicts.reach import FRESH_RUNS
from pytest_llmperf.errors import Shown, StoreError, UsageError
from pytest_llmperf.gate import words
from pytest_llmperf.gate.accepted import accepted_sessions, unmeasured
from pytest_llmperf.gate.calibration import Calibrated, read_calibrations
from pytest_llmperf.gate.gated import GatedMetric
from pytest_llmperf.gate.lineage import Lineage, lineage_of
from pytest_llmperf.gate.past import AcceptedSessions, Question
from pytest_llmperf.gate.since import judge
from pytest_llmperf.gate.waivers import Waivers, read_waivers
from pytest_llmperf.settings.limits import COUNTED, DEFAULT_LIMITS

if TYPE_CHECKING:
    from pytest_llmperf.history.accept import Reviewed
    from pytest_llmperf.history.store import Store
    from pytest_llmperf.settings.settings import Settings

Again = Callable[[], Sequence[Record]]


class Regression(Shown, AssertionError):
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
        self._changes: list[Change] = []
        self.planned_tests = 1

    def judge(
        self, records: Sequence[Record], own_limits: Mapping[str, float], again: Again
    ) -> None:
        """Judge every gated metric of the records of one run (or of both sides of a comparison).

        A suspected regression is measured three times more, which decide it: `again` does so once,
        in a fresh worker, and gives the records in the same order. When the session has used its
        time for that, suspicions stay undecided.

        Raises:
            Regression: one of them failed, or is not comparable or undecided where the session
                forbids that.
            UsageError: accepted sessions hold values that nothing can be compared with.
        """
        metrics = [
            metric
            for position, record in enumerate(records)
            for metric in self._gated(position, record, own_limits)
        ]
        if any(metric.suspected for metric in metrics):
            metrics = self._measured_again(metrics, again)
        self._n_failed += sum(metric.failed for metric in metrics)
        self._n_compared += sum(metric.comparison is not None for metric in metrics)
        metrics = [self._waived(metric) for metric in metrics]
        self._changes += [
            metric.change(metric.comparison) for metric in metrics if metric.comparison is not None
        ]
        self.keep(list(map(self._finding, metrics)))

    def missing(self, test: str, session_id: str, recorded: Sequence[Record]) -> None:
        """Say which runs of the test's last accepted session it has not made again.

        For a test that passed.

        Raises Regression where the session requires accepted sessions for everything.
        """
        store = self._store()
        if store is None:
            return
        try:
            missing = unmeasured(
                store, self._reviewed, test, session_id, recorded, lineage=self._lineage
            )
        except StoreError as error:
            self._note(f"{test}: whether it still measures what it did was not looked at: {error}")
            return
        strict = self._settings.require_accepted
        self.keep([words.gone(record, strict=strict) for record in missing])

    def take_compared(self) -> int:
        """How many series were compared with accepted sessions since the last call."""
        n_compared, self._n_compared = self._n_compared, 0
        return n_compared

    def take_changes(self) -> list[Change]:
        """Return each compared metric before and after, since the last call."""
        changes, self._changes = self._changes, []
        return changes

    @cached_property
    def _reviewed(self) -> Reviewed:
        # SQLAlchemy, only where something is gated.
        from pytest_llmperf.history import accept  # noqa: PLC0415

        return accept.reviewed(self._settings.root)

    @cached_property
    def _lineage(self) -> Lineage | None:
        return lineage_of(self._settings.root, any_tree=self._settings.any_tree)

    @cached_property
    def _waivers(self) -> Waivers:
        return read_waivers(self._settings.waivers)

    @cached_property
    def _calibrated(self) -> tuple[Calibrated, ...]:
        return read_calibrations(self._settings.root)

    def keep(self, findings: Sequence[Finding]) -> None:
        """Add findings to those of the running test.

        Raises Regression if one of them is a failure.
        """
        failed = [finding for finding in map(keep, findings) if not finding]
        if failed:
            raise Regression(_message(failed))

    def _limits_of(
        self, record: Record, own: Mapping[str, float], floors: Mapping[str, Calibrated]
    ) -> dict[str, float]:
        """The limits of the record's metrics.

        The marker's come first, then the session's, the calibrated ones, and the defaults.
        """
        limits = self._session_limits(floors) | dict(own)
        self._note_low_limits(record.test, limits, floors)
        known = {metric.name for metric in record.metrics}
        return {name: limit for name, limit in limits.items() if name in known}

    def _floors_of(self, record: Record) -> dict[str, Calibrated]:
        """What was calibrated of the record's metrics."""
        return {floor.metric: floor for floor in self._calibrated if floor.covers(record)}

    def _note_low_limits(
        self, test: str, limits: Mapping[str, float], floors: Mapping[str, Calibrated]
    ) -> None:
        for name, calibrated in floors.items():
            limit = limits.get(name, calibrated.floor)
            if limit < calibrated.floor:
                self._note(words.below_floor(test, name, limit, calibrated))

    def _session_limits(self, floors: Mapping[str, Calibrated]) -> dict[str, float]:
        if self._limits and self._limits != DEFAULT_LIMITS:
            return self._limits
        return DEFAULT_LIMITS | _calibrated_limits(floors)

    def _gated(
        self, position: int, record: Record, own: Mapping[str, float]
    ) -> Iterator[GatedMetric]:
        """Compare the record's gated metrics with their accepted sessions."""
        floors = self._floors_of(record)
        limits = self._limits_of(record, own, floors)
        n_noisy = len(limits.keys() - COUNTED)
        metrics = {metric.name: metric for metric in record.metrics}
        for name, limit in limits.items():
            gated = GatedMetric(
                position=position,
                record=record,
                metric=metrics[name],
                limit=limit,
                sessions=self._sessions(record, metrics[name], limit),
                calibrated=floors[name].spread if name in floors else None,
            )
            yield changed(gated, comparison=self._compared(gated, n_noisy))

    def _sessions(self, record: Record, metric: MetricValue, limit: float) -> AcceptedSessions:
        question = Question(record=record, metric=metric, limit=limit, lineage=self._lineage)
        return accepted_sessions(self._store(), self._reviewed, question)

    def _compared(self, gated: GatedMetric, n_noisy: int) -> Comparison | None:
        metric, accepted = gated.metric, gated.sessions.accepted
        if metric.value is None or not accepted.values:
            return None
        try:
            limit = P_SINGLE if metric.name in COUNTED else self._next_p_limit(n_noisy)
            return judge(
                metric,
                metric.value,
                accepted,
                limit=gated.limit,
                p_limit=limit,
                calibrated=gated.calibrated,
            )
        except UsageError as error:
            subject = words.title(metric.name, gated.record)
            raise UsageError(f"{subject} cannot be gated: {error}") from error

    def _next_p_limit(self, n_noisy: int) -> float:
        """The p that the next series has to reach in a session of so many."""
        self._n_judged += 1
        family = max(self.planned_tests * n_noisy, self._n_judged)
        return p_limit(family, min(self._n_failed, family - 1))

    def _measured_again(self, metrics: Sequence[GatedMetric], again: Again) -> list[GatedMetric]:
        """Decide suspicions by fresh measurements, as many as there is time for."""
        suspected = [metric for metric in metrics if metric.suspected]
        is_noisy = any(metric.metric.name not in COUNTED for metric in suspected)
        fresh: list[Sequence[Record]] = []
        while len(fresh) < (FRESH_RUNS if is_noisy else 1) and self._has_time:
            fresh.append(self._timed(again))
        return _with_fresh_values(metrics, fresh) if fresh else self._left_undecided(metrics)

    @property
    def _has_time(self) -> bool:
        """Whether the session may measure suspicions again."""
        return self._again_s < self._settings.again_budget_s

    def _left_undecided(self, metrics: Sequence[GatedMetric]) -> list[GatedMetric]:
        """The metrics of a session that has used its time for fresh measurements."""
        why = (
            "undecided: not measured again, the session has used its "
            f"{self._settings.again_budget_s:g} s for that (--llmperf-again-budget)"
        )
        return [metric.left_undecided(why) for metric in metrics]

    def _timed(self, again: Again) -> Sequence[Record]:
        """Measure once more, on the session's time for that."""
        start = self._clock()
        try:
            return again()
        finally:
            self._again_s += self._clock() - start

    def _waived(self, gated: GatedMetric) -> GatedMetric:
        name, test = gated.metric.name, gated.record.test
        waiver = self._waivers.of(gated.record, name)
        if waiver is None or gated.comparison is None:
            return gated
        if gated.comparison.outcome is Outcome.PASS:
            self._note(words.needless_waiver(test, name, waiver, self._waivers.path.name))
        return changed(gated, waiver=waiver) if gated.failed else gated

    def _finding(self, gated: GatedMetric) -> Finding:
        comparison, test = gated.comparison, gated.record.test
        if comparison is None:
            return words.not_comparable(gated, strict=self._settings.require_accepted)
        finding = words.judged(gated, comparison, strict=self._settings.strict)
        if finding.outcome is Outcome.FAIL:
            self._note(words.how_to_accept(test, _key(gated.record)))
        elif comparison.again is not None and not gated.failed:
            self._note(f"{test}: not seen again in fresh runs: {finding.text}")
        return finding


def _with_fresh_values(
    metrics: Sequence[GatedMetric], fresh: Sequence[Sequence[Record]]
) -> list[GatedMetric]:
    return [
        metric.measured_again([records[metric.position] for records in fresh]) for metric in metrics
    ]


def _message(failed: Sequence[Finding]) -> str:
    return "\n".join(line for finding in failed for line in (finding.text, finding.detail))


def _calibrated_limits(floors: Mapping[str, Calibrated]) -> dict[str, float]:
    """The floors of those metrics that are gated by default."""
    return {name: floors[name].floor for name in floors.keys() & DEFAULT_LIMITS.keys()}


def _key(record: Record) -> str:
    # The history is loaded where something is gated.
    from pytest_llmperf.history.identity import series_key  # noqa: PLC0415

    return series_key(record)
