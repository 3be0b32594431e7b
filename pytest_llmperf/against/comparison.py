"""Side by side: what a test measures here against what the same test measures at the base, block by block (rule B)."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_llmperf.against import words
from pytest_llmperf.against.base import Base
from pytest_llmperf.against.blocks import measure_block
from pytest_llmperf.against.tracks import Track, track
from pytest_llmperf.against.trees import strays
from pytest_llmperf.core.environment import differences
from pytest_llmperf.core.record import Environment, Record
from pytest_llmperf.core.verdicts.judge import Finding, Outcome, keep
from pytest_llmperf.errors import InvalidRun, LlmperfError
from pytest_llmperf.gate.gate import Regression
from pytest_llmperf.session.sampling import Goal
from pytest_llmperf.settings.limits import COUNTED
from pytest_llmperf.wire.commands import MeasureBlock
from pytest_llmperf.wire.results import BlockMeasured, Ended, Reached
from pytest_llmperf.workloads import Workload

if TYPE_CHECKING:
    from pytest_llmperf.session.model import Model
    from pytest_llmperf.session.session import LlmperfSession

DEFAULT_LIMITS = {"throughput": 0.03}
"""What is compared where neither an option nor the marker says so."""

BLOCK_SHARE = 0.2
"""Share of a run's sampling budget that one block may take: a pair is many blocks, each too short to drift."""

REPETITIONS_PER_PAIR = 10_000
"""Prompts are numbered by their repetition; both blocks of a pair have the same, no two pairs do.
"""

MAX_INVALID = 5
_SAME = ("workload_text", "workload_key", "strategy", "engine")


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What a test wants to measure here: models, work, and the records that were made of it."""

    session: LlmperfSession
    models: Sequence[Model]
    workload: Workload
    records: Sequence[Record]

    @property
    def together(self) -> bool:
        """Whether both versions fit on the device at once."""
        plans = [model.plan for model in self.models]
        return self.session.pool.fits_together(*plans, *plans)


class Comparison:
    """Compares every measurement of a session with the base's.

    It knows how many series share the session's error.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self.planned_tests = 1
        self._test = ""
        self._following: str | None = None
        self._draw = random.Random()  # noqa: S311 - the order inside a pair; it is stored
        self._n_judged = self._n_compared = 0

    def begin(self, test: str, following: str | None) -> None:
        """A test starts; `following` is the one after it."""
        self._test, self._following = test, following

    def end(self) -> None:
        """The test is over here: it ends at the base too.

        A base side that fails in its teardown is started anew.
        """
        with suppress(LlmperfError):
            self.base.leave()

    def take_compared(self) -> int:
        """How many series were compared since last asked."""
        taken, self._n_compared = self._n_compared, 0
        return taken

    def collected(self, node_ids: Sequence[str]) -> None:
        """These tests may run."""
        self.planned_tests, self.base.node_ids = len(node_ids), node_ids

    def judge(
        self,
        session: LlmperfSession,
        models: Sequence[Model],
        workload: Workload,
        records: Sequence[Record],
        own_limits: Mapping[str, float],
    ) -> None:
        """Measure pairs until rule B decides each metric of each record; store them.

        Keep a finding of each.

        Raises:
            Regression: one failed, or is not comparable or undecided where the session forbids
                that.
            InvalidRun: too many blocks were not valid.
        """
        at = Measuring(session=session, models=models, workload=workload, records=records)
        settings = session.settings
        limits = (settings.against_limits or settings.gate or DEFAULT_LIMITS) | dict(own_limits)
        tracks = self._tracks(at.records, limits)
        reached = self._reach(at)
        ended = ""
        if isinstance(reached, str):
            _close(tracks, reached)
        else:
            ended = self._measure(at, tracks)
            self._give_back(at)
        self._n_compared += sum(bool(each.pairs) for each in tracks)
        self._store(at, tracks, reached)
        self._say(at, tracks, ended)

    # What is compared

    def _tracks(self, records: Sequence[Record], limits: Mapping[str, float]) -> list[Track]:
        known = {metric.name for record in records for metric in record.metrics}
        # A benchmark's time is no run's.
        own = {name: limit for name, limit in limits.items() if name in known}
        noisy = len(own.keys() - COUNTED) * len(records)
        self._n_judged += noisy
        family = max(self.planned_tests * noisy, self._n_judged)
        return [
            track(side, record, name, limit=limit, counted=name in COUNTED, family=family)
            for side, record in enumerate(records)
            for name, limit in own.items()
        ]

    def _reach(self, at: Measuring) -> Reached | str:
        """Where the base's test waits to measure the same, or why nothing can be compared."""
        try:
            at.session.progress("reaching the base", self.base.target.name, None)
            if not at.together:
                at.session.renew(at.models)
            gpus = tuple(gpu.uuid for gpu in at.session.gpus.held)
            reached = self.base.reach(
                self._test, self._following, release=not at.together, gpus=gpus
            )
            trees = self.base.trees()
            found = strays(trees, trees.head, sys.modules)
        except LlmperfError as error:
            return f"the base could not be measured: {type(error).__name__}: {error}"
        if isinstance(reached, Ended):
            return _ended_text(reached)
        if found:
            return f"this side loaded modules of another copy of the project: {', '.join(found)}"
        return _differs(at.records, reached) or reached

    # Pairs

    def _measure(self, at: Measuring, tracks: Sequence[Track]) -> str:
        """Pairs until all is decided; what looks worse is measured again in fresh workers.

        Returns why it ended early.
        """
        try:
            ended = self._pairs(at, tracks, fresh=False)
            suspected = [each for each in tracks if each.suspected]
            if suspected and at.session.renew(at.models):
                for each in suspected:
                    each.suspect()
                self._pairs(at, suspected, fresh=True)
        except _BaseFailed as failed:
            _close([each for each in tracks if each.open], str(failed))
            return ""
        return ended

    def _pairs(self, at: Measuring, tracks: Sequence[Track], *, fresh: bool) -> str:
        """Add pairs to the open tracks. `fresh`: the base's workers are new too.

        Returns why it ended early, if it did.
        """
        budget_s = at.session.settings.against_budget_s
        spent_s, n, invalid = 0.0, 0, 0
        while any(each.open for each in tracks):
            if spent_s >= budget_s:
                return (
                    f"the budget of {budget_s:g} s (--llmperf-against-budget) ended after {n} pairs"
                )
            at.session.progress("side by side", f"pair {n + 1}", None)
            try:
                base, here = self._pair(
                    at,
                    [each for each in tracks if each.open],
                    n + invalid,
                    fresh=fresh and not n + invalid,
                )
            except InvalidRun as error:
                invalid += 1
                if invalid > max(MAX_INVALID, n):
                    raise InvalidRun(
                        f"{invalid} of {invalid + n} pairs were not valid; the last: {error}"
                    ) from error
                continue
            n += 1
            spent_s += base.spent_s + here.spent_s
            _add(tracks, base, here)
        return ""

    def _give_back(self, at: Measuring) -> None:
        """On GPUs, memory must be back before anything else is leased or loaded.

        A base side that fails gives it back, too.
        """
        if at.session.gpus.held:
            with suppress(LlmperfError):
                self.base.give_back()

    def _pair(
        self, at: Measuring, tracks: Sequence[Track], number: int, *, fresh: bool
    ) -> tuple[BlockMeasured, BlockMeasured]:
        """A block of each version, in random order: the base's and ours."""
        session = at.session
        goal = Goal(precision=session.goal.precision, budget_s=session.goal.budget_s * BLOCK_SHARE)
        command = MeasureBlock(
            metrics=tuple(dict.fromkeys(each.metric.name for each in tracks)),
            precision=goal.precision,
            budget_s=goal.budget_s,
            first_repetition=(number + 1) * REPETITIONS_PER_PAIR,
            fresh=fresh,
        )
        if self._draw.random() < 0.5:  # noqa: PLR2004 - a fair coin
            base = self._base_block(command)
            return base, self._own_block(at, command, goal)
        here = self._own_block(at, command, goal)
        return self._base_block(command), here

    def _base_block(self, command: MeasureBlock) -> BlockMeasured:
        try:
            return self.base.block(command)
        except InvalidRun:
            raise
        except LlmperfError as error:
            raise _BaseFailed(
                f"the base failed while it was measured: {type(error).__name__}: {error}"
            ) from error

    def _own_block(self, at: Measuring, command: MeasureBlock, goal: Goal) -> BlockMeasured:
        load = [model.load for model in at.models]
        progress, first = at.session.progress, command.first_repetition
        block = measure_block(
            load, at.workload, command.metrics, goal, progress, first_repetition=first
        )
        if not at.together:
            at.session.renew(at.models)
        return block

    # What came of it

    def _store(self, at: Measuring, tracks: Sequence[Track], reached: Reached | str) -> None:
        for side, record in enumerate(at.records):
            own = [each for each in tracks if each.side == side]
            facts = reached.sides[side] if isinstance(reached, Reached) else None
            kept: dict[str, Any] = {"value": self.base.target.text, "kind": self.base.target.kind}
            kept["commit"] = self.base.target.commit
            kept["base"] = {} if facts is None else msgspec.structs.asdict(facts)
            kept["metrics"] = {each.metric.name: each.summary() for each in own}
            at.session.recorder.annotate(record.id, against=kept)

    def _say(self, at: Measuring, tracks: Sequence[Track], ended: str) -> None:
        base = self.base.target.name
        for each in tracks:
            at.session.note(words.summary_line(each, base))
        findings = [keep(self._finding(at, each, ended)) for each in tracks]
        failed = [finding for finding in findings if not finding]
        if failed:
            raise Regression(
                "\n".join(line for finding in failed for line in (finding.text, finding.detail))
            )

    def _finding(self, at: Measuring, each: Track, ended: str) -> Finding:
        settings = at.session.settings
        strict = (
            settings.require_accepted if each.outcome is Outcome.NOT_COMPARABLE else settings.strict
        )
        return words.finding(each, self.base.target.name, strict=strict, ended=ended)


class _BaseFailed(Exception):
    """The base side failed in the middle of a comparison: what is open stays without a verdict."""


def _close(tracks: Sequence[Track], reason: str) -> None:
    for each in tracks:
        each.reason = each.reason or reason


def _add(tracks: Sequence[Track], base: BlockMeasured, here: BlockMeasured) -> None:
    for each in tracks:
        name = each.metric.name
        if each.open:
            reason = base.reasons.get(name) or here.reasons.get(name, "")
            each.add(base.values[each.side][name], here.values[each.side][name], reason)


def _ended_text(ended: Ended) -> str:
    said = {
        "missing": "the base has no such test",
        "broken": "its file cannot be collected at the base",
        "failed": "the base's test failed before it measured this",
        "skipped": "the base's test was skipped",
        "passed": "the base's test ended without measuring this",
    }
    text = said.get(ended.outcome, ended.outcome)
    return f"{text}: {ended.message}" if ended.message else text


def _differs(records: Sequence[Record], reached: Reached) -> str:
    """What makes the two no comparison: another number of models, other work, another environment, or no base at all."""
    if reached.strays:
        return f"the base side loaded modules of another copy of the project: {', '.join(reached.strays)}"
    if len(reached.sides) != len(records):
        return f"the base measures {len(reached.sides)} models here, this test {len(records)}"
    for record, side in zip(records, reached.sides, strict=True):
        other = [name for name in _SAME if getattr(record, name) != getattr(side, name)]
        if other:
            name = other[0]
            return f"another measurement: {name} is {getattr(record, name)!r}, at the base {getattr(side, name)!r}"
        facts = differences(record.environment, Environment(facts=side.facts))
        if facts:
            named = ", ".join(
                f"{name} is {here!r}, at the base {there!r}" for name, here, there in facts
            )
            return f"another environment: {named}"
    return ""
