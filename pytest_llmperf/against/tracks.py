"""One metric of one side through the pairs: its values, and what rule B says of them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from pytest_llmperf.core.change import Change, stored_change
from pytest_llmperf.core.record import MetricValue, Record
from pytest_llmperf.core.verdicts import processes
from pytest_llmperf.core.verdicts.judge import Outcome
from pytest_llmperf.core.verdicts.loads import Load, Loads, described
from pytest_llmperf.core.verdicts.processes import ALIKE, UNKNOWN, KnownSpread, Processes
from pytest_llmperf.core.verdicts.reach import MIN_SESSIONS
from pytest_llmperf.core.verdicts.side_by_side import E_FAIL, E_PASS, Decision, SideBySide

SEEN_AGAIN = E_PASS
"""Evidence that further pairs must give for what was seen before them."""

_NO_REASON = "no reason was given"

_CALIBRATED = "llmperf calibrate"
_LEAST_FREEDOM = MIN_SESSIONS - 1.0
"""Degrees of freedom of the shortest calibration."""


@dataclass
class Track:
    """A metric of one record, `limit` the share it may be worse by.

    `counted` metrics are compared once, exactly.

    `second` holds the pairs after the suspicion, once there was one. `reason` says why nothing is
    compared (any more). `process_spread` is how far processes are known to be apart, for pairs of
    the same two. `loads` are the processes of all pairs, two a pair.
    """

    side: int
    record: Record
    metric: MetricValue
    limit: float
    counted: bool
    state: SideBySide
    second: SideBySide | None = None
    reason: str = ""
    process_spread: float | None = None
    pairs: list[tuple[float, float]] = field(default_factory=list)
    second_pairs: list[tuple[float, float]] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)

    @property
    def decision(self) -> Decision | None:
        """What the pairs so far say; those after a suspicion apart."""
        return self.state.look()

    @property
    def second_decision(self) -> Decision | None:
        """What the pairs after a suspicion say."""
        return None if self.second is None else self.second.look()

    @property
    def open(self) -> bool:
        """Whether another pair is needed."""
        if self.reason or (self.counted and self.pairs):
            return False
        return _outcome(self._latest_decision()) is None

    def _latest_decision(self) -> Decision | None:
        """Return what the last measurement says: the second one, once it has begun."""
        return self.decision if self.second is None else self.second_decision

    @property
    def suspected(self) -> bool:
        """Whether it looks worse, and was not looked at again; more of one process adds nothing."""
        return (
            not self.counted
            and self.second is None
            and self.state.fresh
            and self.decision is not None
            and self.decision.outcome is Outcome.FAIL
        )

    @property
    def outcome(self) -> Outcome:
        """The verdict; while more pairs are needed (the budget ended) it is UNDECIDED."""
        if self.reason:
            return Outcome.NOT_COMPARABLE
        if self.counted:
            return Outcome.FAIL if self.worse > self.limit else Outcome.PASS
        first, second = _outcome(self.decision), _outcome(self.second_decision)
        if first is Outcome.FAIL and self.second is not None:
            return Outcome.FAIL if second is Outcome.FAIL else Outcome.UNDECIDED
        return first or Outcome.UNDECIDED

    @property
    def worse(self) -> float:
        """Share by which the mean pair is worse (positive) or better.

        For a counted metric, that of its one pair.
        """
        if self.counted:
            return self._counted_worse()
        return self.decision.worse if self.decision is not None else 0.0

    def _counted_worse(self) -> float:
        base, new = self.pairs[0]
        return self._sign() * (new - base) / base if base else 0.0

    def _sign(self) -> int:
        """Return 1 for a metric that is worse when it grows, else -1."""
        return 1 if self.metric.direction == "lower" else -1

    @property
    def change(self) -> Change:
        """The metric at the base and here, as every report takes it."""
        return stored_change(self.record, self.metric.name, self.summary())

    @property
    def processes(self) -> Loads | None:
        """The processes of the pairs before any suspicion; None before the first pair."""
        if not self.loads:
            return None
        return described(self.loads[: 2 * len(self.pairs)], self.pairs)

    def add(
        self, base: float | None, new: float | None, reason: str, *, loads: Sequence[Load]
    ) -> None:
        """Take in a pair, and the two processes that it was measured in.

        A value that could not be measured, or has no ratio, ends the comparison of this metric.
        """
        if base is None or new is None:
            place = "at the base" if base is None else "here"
            self.reason = f"it could not be measured {place}: {reason or _NO_REASON}"
        elif self.counted:
            self.pairs.append((base, new))
        elif min(base, new) <= 0:
            self.reason = f"{new:g} against {base:g}: a ratio needs positive values"
        else:
            self._add_measured(base, new, loads)

    def _add_measured(self, base: float, new: float, loads: Sequence[Load]) -> None:
        self.loads += loads
        if not all(load.fresh for load in loads):
            self.state = self.state.of_one_process(self.process_spread)
        if self.second is None:
            self.pairs.append((base, new))
            self.state = self.state.with_pair(base, new)
        else:
            self.second_pairs.append((base, new))
            self.second = self.second.with_pair(base, new)

    @property
    def latest(self) -> SideBySide:
        """What the last measurement has: the second one, once it has begun."""
        return self.state if self.second is None else self.second

    def suspect(self) -> None:
        """From now on pairs say whether the suspicion is seen again."""
        self.second = SideBySide(
            direction=self.state.direction, floor=self.state.floor, evidence=SEEN_AGAIN
        )

    def summary(self) -> dict[str, Any]:
        """The comparison as the record keeps it; `stored_change` reads it."""
        summary: dict[str, Any] = {
            "outcome": self.outcome.value,
            "limit": self.limit,
            "unit": self.metric.unit,
            "direction": self.metric.direction,
            "reason": self.reason,
        }
        if self.pairs and not self.reason:
            summary |= {"worse": self.worse, "ratio": None if self.counted else self._ratio()}
        return summary | self._evidence()

    def _evidence(self) -> dict[str, Any]:
        """The pairs, and what rule B says of them."""
        evidence: dict[str, Any] = {
            "pairs": self.pairs,
            "again_pairs": self.second_pairs,
            "evidence": self.state.evidence,
        }
        if self.processes is not None:
            evidence["processes"] = structs.asdict(self.processes)
        decisions = {"decision": self.decision, "again": self.second_decision}
        for name, decision in decisions.items():
            if decision is not None:
                evidence[name] = structs.asdict(decision)
        return evidence

    def _ratio(self) -> list[float]:
        """New / base of the mean pair, and the ends of its 99 % interval.

        Pairs of the same two processes bound the ratio of two versions only as far as it is known
        how much processes differ.
        """
        bases, news = zip(*self.pairs, strict=True)
        side = self._side_processes()
        ratio = processes.log_ratio_interval(news, bases, (side, side), paired=True)
        if side.is_unknown:
            return [math.exp(ratio.center), 0.0, math.inf]
        return [math.exp(ratio.center), math.exp(ratio.low), math.exp(ratio.high)]

    def _side_processes(self) -> Processes:
        """Return what is known of the processes of one side; fresh ones are in the pairs."""
        if self.state.fresh:
            return ALIKE
        if self.process_spread is None:
            return Processes(unknown=UNKNOWN)
        known = KnownSpread(spread=self.process_spread, freedom=_LEAST_FREEDOM, source=_CALIBRATED)
        return Processes(known=known)


def _outcome(decision: Decision | None) -> Outcome | None:
    return None if decision is None else decision.outcome


def track(
    side: int,
    record: Record,
    name: str,
    *,
    limit: float,
    counted: bool,
    family: int,
    process_spread: float | None = None,
) -> Track:
    """A metric of a record that shares the session's error with `family` series in all."""
    metric = next(metric for metric in record.metrics if metric.name == name)
    direction: Any = metric.direction
    state = SideBySide(direction=direction, floor=limit, evidence=E_FAIL * max(1, family))
    reason = ""
    if metric.value is None:
        reason = f"it could not be measured here: {metric.reason or _NO_REASON}"
    return Track(
        side=side,
        record=record,
        metric=metric,
        limit=limit,
        counted=counted,
        state=state,
        reason=reason,
        process_spread=process_spread,
    )
