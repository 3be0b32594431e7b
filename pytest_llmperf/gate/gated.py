"""What the gate works on: a metric under a limit, through its comparisons to a verdict. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_llmperf.core.change import Change
from pytest_llmperf.core.record import MetricValue, Record
from pytest_llmperf.core.verdicts.against_history import Comparison, confirm
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.gate.past import AcceptedSessions
from pytest_llmperf.gate.since import change_since, judge
from pytest_llmperf.settings.limits import COUNTED

if TYPE_CHECKING:
    from pytest_llmperf.gate.waivers import Waiver


@dataclass(frozen=True, kw_only=True)
class GatedMetric:
    """A metric of a record under a limit, and the sessions that it is held against.

    The record is at `position` of those of its run. `comparison` is None where nothing was
    compared. `calibrated` is the spread of fresh runs, where it is known. `why` says why a
    suspicion was left undecided, `waiver` who answers for a failure.
    """

    position: int
    record: Record
    metric: MetricValue
    limit: float
    sessions: AcceptedSessions
    calibrated: float | None = None
    comparison: Comparison | None = None
    why: str = ""
    waiver: Waiver | None = None

    @property
    def failed(self) -> bool:
        """Whether it is worse than the accepted sessions allow."""
        return self.comparison is not None and self.comparison.outcome is Outcome.FAIL

    @property
    def suspected(self) -> bool:
        """Whether fresh measurements should decide."""
        return self.comparison is not None and self.comparison.suspected

    def change(self, comparison: Comparison) -> Change:
        """What the comparison says, as every report takes it."""
        return change_since(self.record, self.metric, self.sessions.accepted, comparison)

    def left_undecided(self, why: str) -> GatedMetric:
        """A suspicion that nothing could confirm."""
        if self.comparison is None or not self.suspected:
            return self
        return changed(
            self, comparison=replace(self.comparison, outcome=Outcome.UNDECIDED), why=why
        )

    def measured_again(self, records: Sequence[Record]) -> GatedMetric:
        """A suspicion with the fresh measurements that `records` hold.

        A value that cannot be measured again leaves it undecided.
        """
        if self.comparison is None or not self.suspected:
            return self
        values = list(filter(_is_usable, (self._value_in(record) for record in records)))
        if not values:
            return self.left_undecided("undecided: the fresh measurements had no value")
        return changed(self, comparison=self._confirmed(self.comparison, values))

    def _value_in(self, record: Record) -> float:
        values = {metric.name: metric.value for metric in record.metrics}
        return values.get(self.metric.name) or 0.0

    def _confirmed(self, first: Comparison, values: Sequence[float]) -> Comparison:
        if self.metric.name in COUNTED:
            return self._counted_again(first, values[-1])
        accepted = self.sessions.accepted
        return confirm(first, values, accepted, calibrated=self.calibrated)

    def _counted_again(self, first: Comparison, value: float) -> Comparison:
        """A counted metric needs no confirmation: its second count decides."""
        second = judge(self.metric, value, self.sessions.accepted, limit=self.limit)
        return replace(first, outcome=second.outcome, again=second)


def _is_usable(value: float) -> bool:
    return 0 < value < math.inf
