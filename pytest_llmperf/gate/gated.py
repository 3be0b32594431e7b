"""What the gate works on: a metric under a limit, through its comparisons to a verdict. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as changed
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_llmperf.core.change import Change
from pytest_llmperf.core.record import MetricValue, Record
from pytest_llmperf.core.verdicts.against_history import Comparison, confirm
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.gate.accepted import AcceptedSessions
from pytest_llmperf.gate.since import change_since, judge
from pytest_llmperf.settings.limits import COUNTED

if TYPE_CHECKING:
    from pytest_llmperf.gate.waivers import Waiver


@dataclass(frozen=True, kw_only=True)
class GatedMetric:
    """A metric of a record under a limit, and the sessions that it is held against.

    The record is at `position` of those of its run. `comparison` is None where nothing was
    compared. `why` says why a suspicion was left undecided, `waiver` who answers for a failure.
    """

    position: int
    record: Record
    metric: MetricValue
    limit: float
    sessions: AcceptedSessions
    comparison: Comparison | None = None
    why: str = ""
    waiver: Waiver | None = None

    @property
    def failed(self) -> bool:
        """Whether it is worse than the accepted sessions allow."""
        return self.comparison is not None and self.comparison.outcome is Outcome.FAIL

    def change(self, comparison: Comparison) -> Change:
        """What the comparison says, as every report takes it."""
        return change_since(self.record, self.metric, self.sessions.accepted, comparison)

    def left_undecided(self, why: str) -> GatedMetric:
        """A failure that nothing could confirm."""
        if self.comparison is None or not self.failed:
            return self
        return changed(
            self, comparison=replace(self.comparison, outcome=Outcome.UNDECIDED), why=why
        )

    def measured_again(self, record: Record) -> GatedMetric:
        """A failure with the second measurement that `record` holds.

        A value that cannot be measured again leaves it undecided.
        """
        if self.comparison is None or not self.failed:
            return self
        values = {metric.name: metric.value for metric in record.metrics}
        value = values.get(self.metric.name)
        if value is None:
            return self.left_undecided("undecided: its second measurement had no value")
        return changed(self, comparison=self._confirmed(self.comparison, value))

    def _confirmed(self, first: Comparison, value: float) -> Comparison:
        if self.metric.name in COUNTED:
            return self._counted_again(first, value)
        return confirm(first, value, self.sessions.accepted)

    def _counted_again(self, first: Comparison, value: float) -> Comparison:
        """A counted metric needs no confirmation: its second count decides."""
        second = judge(self.metric, value, self.sessions.accepted, limit=self.limit)
        return replace(first, outcome=second.outcome, again=second)
