"""What the conformance checks work with: an engine, a plan and a folder, and what a check is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.base import Engine, LoadedModel
from pytest_llmperf.workloads import Decode

DECODE = Decode(batch=2, prompt_tokens=8, new_tokens=6)
"""The workload that most checks run."""

Findings = Iterator[str]


@dataclass(frozen=True)
class Bench:
    """The engine and the plan that are checked, and a folder for files."""

    engine: Engine
    plan: LoadPlan
    directory: Path

    @contextlib.contextmanager
    def open(self) -> Iterator[LoadedModel]:
        """Load the plan anew; the model is closed afterwards."""
        model = self.engine.open(self.plan)
        try:
            yield model
        finally:
            model.close()


@dataclass(frozen=True)
class Check:
    """One published requirement.

    `find` yields what is wrong with a loaded model; nothing found is a pass.
    """

    name: str
    requires: str
    find: Callable[[LoadedModel, Bench], Findings]
