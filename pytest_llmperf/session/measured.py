"""What is measured, and what a measurement leaves: values and protocols of the main path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.record import ONE_PROCESS, ProcessFacts
from pytest_llmperf.core.trace import Mark
from pytest_llmperf.workers.pool import OpenModel
from pytest_llmperf.workloads import Serve, Workload

Work = Workload | Serve
"""A workload, or traffic on a server."""

Acquire = Callable[[], OpenModel]
"""Gives a loaded model, and loads it when it is not loaded."""


class Loadable(Protocol):
    """A model that can be measured."""

    @property
    def plan(self) -> LoadPlan:
        """How it is loaded."""

    def load(self) -> OpenModel:
        """Load it when it is not loaded."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One side of a measurement: the reduced result, and what its record keeps beside it.

    `effective` is what was in effect while samples were taken, `workload` its plain values.
    """

    model: OpenModel
    effective: Effective
    workload: Mapping[str, Any]
    workload_text: str
    result: RunResult
    marks: tuple[Mark, ...]
    pair: str | None
    warm_up: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    processes: ProcessFacts = ONE_PROCESS
