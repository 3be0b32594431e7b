"""One metric of one side through the pairs: its values, and what rule B says of them so far. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pytest_llmperf.core.record import MetricValue, Record
from pytest_llmperf.core.verdicts import stats
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.core.verdicts.side_by_side import E_PASS, Decision, SideBySide

SEEN_AGAIN = E_PASS
"""Evidence that pairs from fresh workers must give for what was seen before them."""


@dataclass
class Track:
    """A metric of one record, `limit` the share it may be worse by.

    `counted` metrics are compared once, exactly.

    `again` holds the pairs from fresh workers, once it was suspected. `reason` says why nothing is
    compared (any more).
    """

    side: int
    record: Record
    metric: MetricValue
    limit: float
    counted: bool
    state: SideBySide
    again: SideBySide | None = None
    reason: str = ""
    pairs: list[tuple[float, float]] = field(default_factory=list)
    again_pairs: list[tuple[float, float]] = field(default_factory=list)

    @property
    def seen(self) -> Decision | None:
        """What the pairs so far say; those from fresh workers apart."""
        return self.state.look()

    @property
    def seen_again(self) -> Decision | None:
        """What those from fresh workers say."""
        return None if self.again is None else self.again.look()

    @property
    def open(self) -> bool:
        """Whether another pair is needed."""
        if self.reason or (self.counted and self.pairs):
            return False
        found = self.seen if self.again is None else self.seen_again
        return found is None or found.outcome is None

    @property
    def suspected(self) -> bool:
        """Whether it looks worse, and was not measured in fresh workers yet."""
        return (
            not self.counted
            and self.again is None
            and self.seen is not None
            and self.seen.outcome is Outcome.FAIL
        )

    @property
    def outcome(self) -> Outcome:
        """The verdict; with pairs still wanted (the budget ended) it is UNDECIDED."""
        if self.reason:
            return Outcome.NOT_COMPARABLE
        if self.counted:
            return Outcome.FAIL if self.worse > self.limit else Outcome.PASS
        first = self.seen.outcome if self.seen is not None else None
        if first is Outcome.FAIL and self.again is not None:
            confirmed = self.seen_again is not None and self.seen_again.outcome is Outcome.FAIL
            return Outcome.FAIL if confirmed else Outcome.UNDECIDED
        return first or Outcome.UNDECIDED

    @property
    def worse(self) -> float:
        """Share by which the mean pair is worse (positive) or better.

        Of a counted metric, its one pair.
        """
        base, new = self.pairs[0]
        if self.counted:
            return (
                (new - base) / base * (1 if self.metric.direction == "lower" else -1)
                if base
                else 0.0
            )
        return self.seen.worse if self.seen is not None else 0.0

    @property
    def ratio(self) -> stats.LogRatio:
        """log(new / base) of the mean pair, with its 99 % interval."""
        pairs = self.pairs
        return stats.log_ratio_interval(
            [new for _, new in pairs], [base for base, _ in pairs], paired=True
        )

    def add(self, base: float | None, new: float | None, reason: str) -> None:
        """Take in a pair.

        A value that could not be measured, or has no ratio, ends the comparison of this metric.
        """
        if base is None or new is None:
            self.reason = f"it could not be measured {'at the base' if base is None else 'here'}: {reason or 'no reason was given'}"
        elif min(base, new) <= 0 and not self.counted:
            self.reason = f"{new:g} against {base:g}: a ratio needs positive values"
        elif self.counted:
            self.pairs.append((base, new))
        elif self.again is None:
            self.pairs.append((base, new))
            self.state = self.state.with_pair(base, new)
        else:
            self.again_pairs.append((base, new))
            self.again = self.again.with_pair(base, new)

    def suspect(self) -> None:
        """From now on pairs are from fresh workers."""
        self.again = SideBySide(
            direction=self.state.direction, floor=self.state.floor, evidence=SEEN_AGAIN
        )

    def summary(self) -> dict[str, Any]:
        """As the record of the comparison keeps it."""
        kept: dict[str, Any] = {
            "outcome": self.outcome.value,
            "limit": self.limit,
            "unit": self.metric.unit,
        }
        kept |= {"direction": self.metric.direction, "reason": self.reason}
        if self.pairs and not self.reason:
            kept |= {
                "worse": self.worse,
                "ratio": [math.exp(each) for each in self.ratio[:3]] if not self.counted else None,
            }
        kept |= {
            "pairs": self.pairs,
            "again_pairs": self.again_pairs,
            "evidence": self.state.evidence,
        }
        for name, found in (("decision", self.seen), ("again", self.seen_again)):
            if found is not None:
                kept[name] = {each: getattr(found, each) for each in found.__struct_fields__}
        return kept


def track(
    side: int, record: Record, name: str, *, limit: float, counted: bool, family: int
) -> Track:
    """A metric of a record that shares the session's error with `family` series in all."""
    metric = next(metric for metric in record.metrics if metric.name == name)
    direction: Any = metric.direction
    state = SideBySide(direction=direction, floor=limit)
    state = SideBySide(direction=direction, floor=limit, evidence=state.evidence * max(1, family))
    found = Track(
        side=side, record=record, metric=metric, limit=limit, counted=counted, state=state
    )
    if metric.value is None:
        found.reason = f"it could not be measured here: {metric.reason or 'no reason was given'}"
    return found
