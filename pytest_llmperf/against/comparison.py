"""Side by side: what a test measures here against what the same test measures at the base (rule B).

Both are measured block by block, in turn.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import msgspec

from pytest_llmperf.against import words
from pytest_llmperf.against.base import Base
from pytest_llmperf.against.counterpart import difference, ended_text
from pytest_llmperf.against.pairs import Pairs, close_tracks
from pytest_llmperf.against.tracks import Track, track
from pytest_llmperf.against.trees import strays
from pytest_llmperf.core.agreement.answers import SharedAnswers
from pytest_llmperf.core.format import short_duration
from pytest_llmperf.core.record import TOOK, Record
from pytest_llmperf.core.side import SideFacts
from pytest_llmperf.core.verdicts.judge import Finding, Outcome, keep
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.gate.calibration import Calibrated, read_calibrations
from pytest_llmperf.gate.gate import Regression
from pytest_llmperf.session.judges import Measurement, MeasuringSession
from pytest_llmperf.session.measured import Work
from pytest_llmperf.settings.limits import COUNTED
from pytest_llmperf.settings.server_target import serves
from pytest_llmperf.wire.results import Ended, Reached
from pytest_llmperf.workloads import Serve

DEFAULT_LIMITS = {"throughput": 0.03}
"""What is compared where neither an option nor the marker says so."""

OPEN_LOOP_LIMITS = {"latency.p50": 0.03}
"""The same of traffic at a rate of its own, which the throughput follows."""


class Comparison:
    """Compares every measurement of a session with the base's.

    It knows how many series share the session's error.
    """

    def __init__(self, base: Base, session: MeasuringSession) -> None:
        self.base = base
        self.planned_tests = 1
        self._session = session
        self._test = ""
        self._following: str | None = None
        self._draw = random.Random()  # noqa: S311 - the order inside a pair; it is stored
        self._n_judged = self._n_compared = 0

    def begin(self, test: str, following: str | None) -> None:
        """Start a test; `following` is the one after it."""
        self._test, self._following = test, following

    def end(self) -> None:
        """End the test at the base too.

        A base side that fails in its teardown is started anew.
        """
        with suppress(LlmperfError):
            self.base.leave()

    def close(self) -> None:
        """End the base side. May be called again."""
        self.base.close()

    def take_compared(self) -> int:
        """Return how many series were compared since the last call."""
        n_compared, self._n_compared = self._n_compared, 0
        return n_compared

    def collected(self, node_ids: Sequence[str]) -> None:
        """Note which tests may run."""
        self.planned_tests, self.base.node_ids = len(node_ids), node_ids

    def judge(
        self,
        records: Sequence[Record],
        own_limits: Mapping[str, float],
        measurement: Measurement,
    ) -> None:
        """Measure pairs until rule B decides each metric of each record; store them.

        Keep a finding of each.

        Raises:
            Regression: one failed, or is not comparable or undecided where the session forbids
                that.
            InvalidRun: too many blocks were not valid.
        """
        start_s = time.monotonic()
        tracks = self._tracks(records, self._limits(own_limits, measurement.workload))
        pairs = Pairs(self.base, self._session, measurement, self._draw)
        reached = self._same_server(records) or self._reach(pairs, records)
        ended = ""
        if isinstance(reached, str):
            close_tracks(tracks, reached)
        else:
            ended = pairs.measure(tracks)
            self._give_back()
        self._n_compared += sum(bool(tracked.pairs) for tracked in tracks)
        took_s = time.monotonic() - start_s
        self._store(records, tracks, reached, pairs.answers, took_s)
        self._note_answers(records, pairs.answers)
        self._conclude(tracks, ended, took_s)

    # What is compared

    def _limits(self, own_limits: Mapping[str, float], workload: Work) -> dict[str, float]:
        settings = self._session.settings
        open_loop = isinstance(workload, Serve) and workload.open_loop
        default = OPEN_LOOP_LIMITS if open_loop else DEFAULT_LIMITS
        limits = settings.against_limits or settings.gate or default
        return {**limits, **own_limits}

    def _tracks(self, records: Sequence[Record], limits: Mapping[str, float]) -> list[Track]:
        """Return one track for each metric of each record that has a limit."""
        known = {metric.name for record in records for metric in record.metrics}
        # A benchmark's time is no run's.
        own_limits = {name: limit for name, limit in limits.items() if name in known}
        n_noisy = len(own_limits.keys() - COUNTED) * len(records)
        self._n_judged += n_noisy
        family = max(self.planned_tests * n_noisy, self._n_judged)
        return [
            track(
                side,
                record,
                name,
                limit=limit,
                counted=name in COUNTED,
                family=family,
                process_spread=self._process_spread(record, name),
            )
            for side, record in enumerate(records)
            for name, limit in own_limits.items()
        ]

    def _process_spread(self, record: Record, metric: str) -> float | None:
        """Return how far processes of this run are known to be apart, from the project's floors."""
        floors = [floor for floor in self._calibrations if floor.metric == metric]
        return next((floor.apart for floor in floors if floor.covers(record)), None)

    @cached_property
    def _calibrations(self) -> tuple[Calibrated, ...]:
        return read_calibrations(self._session.settings.root)

    def _same_server(self, records: Sequence[Record]) -> str:
        """Say that the base is another server, and that nothing here is one."""
        if self.base.target.kind != "server" or all(serves(record.engine) for record in records):
            return ""
        engines = ", ".join(sorted({record.engine for record in records}))
        return f"the base is another server, and engine {engines} is none"

    def _reach(self, pairs: Pairs, records: Sequence[Record]) -> Reached | str:
        """Let the base's test run until it waits to measure the same.

        Returns why nothing can be compared where it does not.
        """
        try:
            self._session.progress("reaching the base", self.base.target.name, None)
            reached = self._run_base_test(pairs)
            trees = self.base.trees()
            stray_modules = strays(trees, trees.head, sys.modules)
        except LlmperfError as error:
            return f"the base could not be measured: {type(error).__name__}: {error}"
        if isinstance(reached, Ended):
            return ended_text(reached)
        if stray_modules:
            modules = ", ".join(stray_modules)
            return f"this side loaded modules of another copy of the project: {modules}"
        return difference(records, reached) or reached

    def _run_base_test(self, pairs: Pairs) -> Reached | Ended:
        if not pairs.fit_together:
            pairs.unload()
        held_gpus = tuple(gpu.uuid for gpu in self._session.gpus.held)
        return self.base.reach(
            self._test, self._following, release=not pairs.fit_together, gpus=held_gpus
        )

    def _give_back(self) -> None:
        """Have the base give its memory on GPUs back, before anything else is leased or loaded.

        A base side that fails gives it back, too.
        """
        if self._session.gpus.held:
            with suppress(LlmperfError):
                self.base.give_back()

    # What came of it

    def _store(
        self,
        records: Sequence[Record],
        tracks: Sequence[Track],
        reached: Reached | str,
        answers: Sequence[SharedAnswers],
        took_s: float,
    ) -> None:
        for side, record in enumerate(records):
            own_tracks = [tracked for tracked in tracks if tracked.side == side]
            facts = reached.sides[side] if isinstance(reached, Reached) else None
            summary = self._summary(own_tracks, facts) | {TOOK: round(took_s, 3)}
            if answers[side].prompts:
                summary["answers"] = msgspec.structs.asdict(answers[side])
            self._session.recorder.annotate(record.id, against=summary)

    def _summary(self, tracks: Sequence[Track], facts: SideFacts | None) -> dict[str, Any]:
        """Return what the record of one side keeps of the comparison."""
        target = self.base.target
        return {
            "value": target.name if target.kind == "server" else target.text,
            "kind": target.kind,
            "commit": target.commit,
            "base": {} if facts is None else msgspec.structs.asdict(facts),
            "metrics": {tracked.metric.name: tracked.summary() for tracked in tracks},
        }

    def _note_answers(self, records: Sequence[Record], answers: Sequence[SharedAnswers]) -> None:
        """Note how far the answers of both servers agree, where they gave any."""
        for record, shared in zip(records, answers, strict=True):
            if shared.prompts:
                self._session.note(f"{record.test} and {self.base.target.name}: {shared}")

    def _conclude(self, tracks: Sequence[Track], ended: str, took_s: float) -> None:
        """Note each outcome, keep the findings, and raise Regression for those that failed."""
        for tracked in tracks:
            line = words.summary_line(tracked, self.base.target.name)
            self._session.note(f"{line} ({short_duration(took_s)})")
        findings = [keep(self._finding(tracked, ended)) for tracked in tracks]
        failures = [finding for finding in findings if not finding]
        if failures:
            lines = [line for finding in failures for line in (finding.text, finding.detail)]
            raise Regression("\n".join(lines))

    def _finding(self, tracked: Track, ended: str) -> Finding:
        strict = self._is_strict(tracked)
        return words.finding(tracked, self.base.target.name, strict=strict, ended=ended)

    def _is_strict(self, tracked: Track) -> bool:
        """Whether an outcome that is no PASS fails the test."""
        settings = self._session.settings
        not_comparable = tracked.outcome is Outcome.NOT_COMPARABLE
        return settings.require_accepted if not_comparable else settings.strict
