"""What may judge a measurement, or measure in the session's place, and what they ask of a session.

The session knows only these protocols: whoever connects a judge with it stands above.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.record import Record
from pytest_llmperf.devices.held import Gpus
from pytest_llmperf.session.measured import Loadable, Work
from pytest_llmperf.session.recorder import Recorder
from pytest_llmperf.session.sampling import Goal
from pytest_llmperf.settings.settings import Settings
from pytest_llmperf.workers.pool import Pool


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a test has measured: models under one workload. Calling it measures once more."""

    models: Sequence[Loadable]
    workload: Work
    again: Callable[[], Sequence[Record]]

    def __call__(self) -> Sequence[Record]:
        """Measure the same in fresh workers, and return the new records in the same order."""
        return self.again()


class Judge(Protocol):
    """Judges the measurements of a session: against the past, or against another version."""

    def judge(
        self, records: Sequence[Record], own_limits: Mapping[str, float], again: Measurement, /
    ) -> None:
        """Keep a finding of each metric that has a limit. Raises Regression for one that failed.

        `own_limits` are the running test's own; `again` is what the records were made of.
        """


class StandIn(Protocol):
    """Measures in the session's place, as the base side of a comparison does."""

    def measure(self, models: Sequence[Loadable], workload: Work) -> list[RunResult]:
        """Return one result for each model."""


class MeasuringSession(Protocol):
    """What a judge or a stand-in asks of the session to measure more itself."""

    settings: Settings
    gpus: Gpus
    pool: Pool
    recorder: Recorder

    @property
    def goal(self) -> Goal:
        """When sampling stops for the running test."""

    def renew(self, models: Sequence[Loadable]) -> bool:
        """Let these models be loaded in fresh workers when next used."""

    def release_except(self, plans: Sequence[LoadPlan]) -> None:
        """Close the models that these plans do not name."""

    def progress(self, phase: str, detail: str, eta_s: float | None) -> None:
        """Show what the running test is doing."""

    def note(self, text: str) -> None:
        """Have the summary say something, once."""
