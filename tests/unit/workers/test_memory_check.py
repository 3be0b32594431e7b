"""Memory that must come back: a worker's process tree's, a device's, and a test's own process's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.devices.held import Gpus
from pytest_llmperf.devices.inventory import simulated
from pytest_llmperf.errors import MemoryNotReturned
from pytest_llmperf.wire.results import Opened
from pytest_llmperf.workers import memory_check
from pytest_llmperf.workers.memory_check import (
    OwnProcess,
    WorkerTree,
    more_than,
    reaches,
    settle,
    used_bytes,
)
from pytest_llmperf.workers.pool import Pool
from pytest_llmperf.workers.this_host import ThisHost

(GPU,) = simulated("1x141GB").gpus
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
time.sleep(60)
"""


class Held:
    """Stands for a model: it can be referred to weakly."""


@pytest.fixture(autouse=True)
def in_use(tmp_path, monkeypatch):
    """`in_use({pid: bytes})` is what the driver says of the one device."""
    path = tmp_path / "usage.json"
    monkeypatch.setenv("LLMPERF_SIMULATED_USAGE", str(path))
    return lambda by_pid: path.write_text(json.dumps({GPU.uuid: by_pid}))


@pytest.fixture
def worker():
    """A process with a child."""
    process = subprocess.Popen([sys.executable, "-c", PARENT], start_new_session=True)
    end_s = time.monotonic() + 20
    while len(WorkerTree.of([process.pid]).processes) < 2 and time.monotonic() < end_s:
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


def test_a_worker_that_is_gone_but_whose_child_lives_has_left_memory(worker):
    """The child is in the tree that was seen while the worker lived.

    It is named with its bytes, and ended.
    """
    tree = WorkerTree.of([worker.pid])
    child = tree.processes[1]
    worker.kill()
    worker.wait()
    (left,) = settle(lambda: tree.left([]), limit_s=0.2)
    assert left.startswith(f"process {child.pid}: ")
    assert left.endswith("bytes) of resident memory")
    tree.kill()
    assert settle(lambda: tree.left([]), limit_s=20) == []


def test_a_worker_that_took_all_with_it_has_left_nothing(worker):
    tree = WorkerTree.of([worker.pid])
    tree.kill()
    worker.wait()
    assert settle(lambda: tree.left([GPU]), limit_s=20) == []


def test_memory_on_a_device_is_counted_by_the_workers_own_processes(worker, in_use):
    """What others have there is not the worker's."""
    tree = WorkerTree.of([worker.pid])
    tree.kill()
    worker.wait()
    assert settle(lambda: tree.left([GPU]), limit_s=20) == []
    in_use({worker.pid: 3 * 10**9, 4194305: 10**9})
    assert settle(lambda: tree.left([GPU]), limit_s=0) == [
        f"process {worker.pid}: 3.00 GB (3000000000 bytes) on cuda:0"
    ]


def test_a_device_that_is_fuller_than_before_is_named_unless_a_foreign_process_is_on_it(
    in_use, worker
):
    before = used_bytes([GPU])
    assert before == {GPU.uuid: 0}
    in_use({4194305: 100 * 2**20})
    assert more_than(before, [GPU]) == []
    in_use({4194305: 5 * 10**9})
    assert more_than(before, [GPU]) == [
        (
            "cuda:0: 5.00 GB (5000000000 bytes) more than before it was used "
            "(5.00 GB (5000000000 bytes) in use)"
        ),
    ]
    in_use({1: 5 * 10**9})
    assert more_than(before, [GPU]) == []


class Leaky:
    """A channel whose worker leaves a process behind."""

    alive = True

    def __init__(self, process) -> None:
        self.pids = (process.pid,)
        self._process = process

    def call(self, *_, **__):
        return Opened(facts=None)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def test_a_pool_says_which_model_left_memory_and_goes_on(worker, monkeypatch):
    """The error comes once, after everything is closed; the next closing raises nothing."""
    monkeypatch.setattr(memory_check, "RETURN_LIMIT_S", 0.2)
    plan = LoadPlan(model=ModelRef(name="m", kind="arch", location="m"), strategy="bf16")
    host = ThisHost(Gpus("all", wait_s=1), wait_s=1, log_dir=Path())
    pool = Pool(lambda _: None, place=host, host=host, timeout_s=1, progress=lambda *_: None)
    pool.adopt(plan, Leaky(worker))
    with pytest.raises(
        MemoryNotReturned,
        match=r"within 0\.2 s of the end: m bf16: process \d+: .* bytes\) of resident memory\.",
    ):
        pool.keep_only(())
    pool.keep_only(())


def own() -> OwnProcess:
    process = OwnProcess(lambda: [GPU])
    process.begin()
    return process


def test_a_model_that_the_test_keeps_is_reported_with_its_bytes(in_use):
    """A module-level list; the process grew on the device by the model's weights."""
    in_use({os.getpid(): 10**9})
    process, kept = own(), [Held()]
    process.watch(kept[0], "mine", 4 * 10**9)
    in_use({os.getpid(): 5 * 10**9})
    (text,) = process.kept(lambda _: False)
    assert text == (
        "mine (4.00 GB (4000000000 bytes) of weights) is still referred to after the test, "
        "and this process grew by 4.00 GB (4000000000 bytes) on cuda:0"
    )
    assert process.kept(lambda _: False) == []


def test_a_model_that_was_let_go_or_that_was_there_before_is_not_reported(in_use):
    """Or that a fixture of a wider scope holds."""
    in_use({os.getpid(): 5 * 10**9})
    process, before = own(), Held()
    process.watch(Held(), "gone", 4 * 10**9)
    process.watch(before, "there before", 4 * 10**9)
    assert process.kept(lambda _: False) == []
    process = own()
    process.watch(before, "a fixture's", 10**9)
    in_use({os.getpid(): 9 * 10**9})
    assert process.kept(lambda model: model is before) == []


def test_a_fixtures_value_may_hold_the_model_inside():
    model = Held()
    holder = Held()
    holder.model = [model]
    assert reaches(model, model)
    assert reaches(("tokenizer", model), model)
    assert reaches({"m": {"n": model}}, model)
    assert reaches(holder, model)
    assert not reaches({"a": {"b": {"c": model}}}, model)
    assert not reaches(None, model)
