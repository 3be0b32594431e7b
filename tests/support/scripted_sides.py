"""A session and a base side that measure scripted models in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_llmperf.against.blocks import measure_block
from pytest_llmperf.against.trees import Trees
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.side import SideFacts
from pytest_llmperf.session.session import LlmperfSession
from pytest_llmperf.settings.against_target import Target
from pytest_llmperf.testing import scripted_plan
from pytest_llmperf.wire.commands import MeasureBlock
from pytest_llmperf.wire.results import BlockMeasured, Reached
from pytest_llmperf.worker.host import Host
from pytest_llmperf.workers.in_process import InProcess
from pytest_llmperf.workloads import Decode, Serve

TEST = "test_it.py::test_speed"
WORK = Decode(batch=1, prompt_tokens=8, new_tokens=11)
NOISE = "noise=0.03"
FAST, SLOW = "ttft=50ms,tpot=10ms", "ttft=55ms,tpot=11ms"

SERVED = (
    Decode(batch=1, prompt_tokens=8, new_tokens=33),
    Serve(rate=4, duration=10, prompt_tokens=8, max_new_tokens=33),
    Serve(concurrency=2, requests=24, prompt_tokens=8, max_new_tokens=33),
)
"""What two servers are measured with: a batch, an open loop, a closed one."""


@dataclass(frozen=True)
class Servers:
    """Two scripted servers under one load: here, and at the base."""

    work: Decode | Serve
    here: str
    there: str
    noise: str

    def scripts(self, seed: int) -> tuple[str, str]:
        """Their scripts; processes and noise of the two are their own."""
        return f"{self.here},{self.noise},seed={2 * seed}", (
            f"{self.there},{self.noise},seed={2 * seed + 1}"
        )


class LocalSession(LlmperfSession):
    """A session whose workers are hosts in this process."""

    def _start_worker(self, plan: LoadPlan) -> InProcess:  # noqa: ARG002
        return InProcess(Host())


class ScriptedBase:
    """In place of a base side: it measures its own scripted model when told."""

    def __init__(
        self,
        session: LocalSession,
        script: str,
        *,
        folder: Path,
        errors: list[Exception] | None = None,
        work: Decode | Serve = WORK,
        kind: Literal["folder", "server"] = "folder",
    ) -> None:
        self.target = Target(kind=kind, text="../before", path=folder)
        self._work = work
        self.commands: list[MeasureBlock] = []
        self.released = False
        self._folder = folder
        self._session = session
        self._model = session_model(session, script)
        self._errors = errors or []

    def reach(self, test, following, *, release, gpus):  # noqa: ARG002 - as Base
        self.released = release
        self._session.recorder.begin(test, "")
        record = self._session.recorder.describe(self._model.load(), self._work)
        facts = {
            name: getattr(record, name) for name in SideFacts.__struct_fields__ if name != "facts"
        }
        return Reached(sides=(SideFacts(**facts, facts=record.environment.facts),))

    def trees(self):
        return Trees(head=self._folder, base=self._folder / "before")

    def block(self, command: MeasureBlock) -> BlockMeasured:
        self.commands.append(command)
        if self._errors:
            raise self._errors.pop(0)
        return measure_block(self._session, [self._model], self._work, command)


def session_model(session: LocalSession, script: str):
    from pytest_llmperf.session.model import Model

    return Model(session, scripted_plan(script))
