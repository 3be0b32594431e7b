"""Worker groups that are always ended, and bounded waiting for something to become true."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_llmperf.wire.commands import Run
from pytest_llmperf.workers.group import WorkerGroup
from pytest_llmperf.workloads import Decode

WAIT_S = 20.0


@pytest.fixture(params=["", "scripted"], ids=["program", "forked"])
def fork_engine(request: pytest.FixtureRequest) -> str:
    """The engine that workers are forks with; nothing for workers that are new programs."""
    return request.param


@pytest.fixture
def start(tmp_path: Path, fork_engine: str) -> Iterator[Callable[..., WorkerGroup]]:
    """Start worker groups whose logs lie in `tmp_path`; what the test leaves alive is killed.

    Those of another program or interpreter than a worker's are not forked.
    """
    with contextlib.ExitStack() as stack:

        def make(**arguments) -> WorkerGroup:
            engine = "" if {"program", "python"} & arguments.keys() else fork_engine
            group = WorkerGroup.start(
                log_dir=tmp_path, name="scripted", fork_engine=engine, **arguments
            )
            stack.callback(group.kill)
            return group

        yield make


@pytest.fixture
def run() -> Run:
    """A small timed repetition."""
    return Run(workload=Decode(batch=1, prompt_tokens=4, new_tokens=3), repetition=0)


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], bool]:
    """Poll until the condition holds; False when it has not after WAIT_S."""

    def wait(condition: Callable[[], bool]) -> bool:
        end_s = time.monotonic() + WAIT_S
        while not (holds := condition()) and time.monotonic() < end_s:
            time.sleep(0.02)
        return holds

    return wait


@pytest.fixture
def gone() -> Callable[[int], bool]:
    """Whether no process of that id runs; a zombie that nobody has reaped does not run."""

    def ended(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return ended
