"""No worker, and nothing a worker started, outlives the session.

This holds whatever ends the session, and however busy the worker is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

PARENT = """
import os, re, sys, threading
from pathlib import Path
from pytest_llmperf.workers.group import WorkerGroup
from pytest_llmperf.testing import scripted_plan
from pytest_llmperf.wire.commands import Open, Run
from pytest_llmperf.workloads import Decode  # noqa: E402

ending, fault, folder, fork_engine = sys.argv[1:]
groups = []

def start():
    group = WorkerGroup.start(
        log_dir=Path(folder), name="orphan", ranks=2, fork_engine=fork_engine
    )
    groups.append(group)

if ending == "thread":
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
else:
    start()
group = groups[0]
group.call(Open(plan=scripted_plan(f"fault=child@open,fault={fault}@run", ranks=2)), deadline_s=30)
children = re.findall(r"child (\\d+)", group.log_tail())
print(*group.pids, *children, flush=True)
if ending == "exit":
    sys.exit(0)
if ending == "_exit":
    os._exit(0)
if ending == "raise":
    raise RuntimeError("the session crashed")
try:
    run = Run(workload=Decode(), repetition=0)
    group.call(run, deadline_s=100, on_beat=lambda beat: print("in the call", flush=True))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


class Parent:
    """A process that holds two ranks with a grandchild each, and waits for their reply for ever."""

    def __init__(self, ending: str, fault: str, folder: Path, fork_engine: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT, ending, fault, str(folder), fork_engine],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pids = [int(word) for word in self.process.stdout.readline().split()]

    def wait_in_call(self) -> None:
        """Return when a heartbeat of the call has arrived."""
        assert self.process.stdout.readline() == "in the call\n"

    def rest(self) -> str:
        """Wait for the end; what it printed last."""
        return "".join(self.process.communicate(timeout=30))


@pytest.fixture
def hold(tmp_path: Path, fork_engine: str) -> Iterator:
    """Start a parent.

    In the end its processes are killed, should the code under test have failed to.
    """
    parents = []

    def start(ending: str, fault: str = "hang") -> Parent:
        parents.append(Parent(ending, fault, tmp_path, fork_engine))
        assert len(parents[-1].pids) == 4, parents[-1].rest()
        return parents[-1]

    yield start
    for parent in parents:
        parent.process.kill()
        parent.process.communicate()
        for pid in parent.pids:
            subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)


@pytest.mark.parametrize("fault", ["hang", "spin"])
def test_kill_9_of_the_session_leaves_no_process(hold, eventually, gone, fault):
    """Workers that wait, workers that loop, and their children's sessions: all are gone."""
    parent = hold("wait", fault)
    parent.wait_in_call()
    assert not any(gone(pid) for pid in parent.pids)
    os.kill(parent.process.pid, signal.SIGKILL)
    assert eventually(lambda: all(gone(pid) for pid in parent.pids))


def guard_of(parent: Parent) -> psutil.Process:
    return next(
        p
        for p in psutil.Process(parent.process.pid).children()
        if "pytest_llmperf.worker.guard" in p.cmdline()
    )


def test_the_closed_socket_alone_ends_workers(hold, eventually, gone):
    """Without a parent-death signal and a guard each worker ends itself and its children.

    There is no such signal for workers that were started in a thread.
    """
    parent = hold("thread")
    guard_of(parent).kill()
    os.kill(parent.process.pid, signal.SIGKILL)
    assert eventually(lambda: all(gone(pid) for pid in parent.pids))


def test_the_guard_alone_ends_workers_that_cannot_act(hold, eventually, gone):
    """Workers without a parent-death signal that are stopped are found by the guard.

    It finds them by their environment, and ends itself.
    """
    parent = hold("thread")
    guard = guard_of(parent)
    for pid in parent.pids:
        os.kill(pid, signal.SIGSTOP)
    os.kill(parent.process.pid, signal.SIGKILL)
    assert eventually(lambda: all(gone(pid) for pid in (*parent.pids, guard.pid)))


def test_ctrl_c_in_the_session_ends_the_workers_and_goes_on_as_ctrl_c(hold, eventually, gone):
    """The workers have a session of their own, so the terminal's signal reaches the parent only."""
    parent = hold("wait")
    parent.wait_in_call()
    os.kill(parent.process.pid, signal.SIGINT)
    assert "interrupted" in parent.rest()
    assert eventually(lambda: all(gone(pid) for pid in parent.pids))


def test_sigterm_to_the_session_leaves_no_process(hold, eventually, gone):
    """Python runs no exit handlers on SIGTERM; the socket closes all the same."""
    parent = hold("wait")
    parent.process.terminate()
    assert eventually(lambda: all(gone(pid) for pid in parent.pids))


@pytest.mark.parametrize("ending", ["exit", "_exit", "raise"])
def test_a_session_that_ends_without_closing_leaves_no_process(hold, eventually, gone, ending):
    """A forgotten close, os._exit, and an error that nobody caught."""
    parent = hold(ending)
    parent.rest()
    assert eventually(lambda: all(gone(pid) for pid in parent.pids))


TAKES_ITS_CHILDREN_ALONG = """
import os, subprocess, sys
import psutil
from pytest_llmperf.workers import guardian
from pytest_llmperf.processes import TOKEN

if sys.argv[1] == "detached":
    guardian.detach()
env = {**os.environ, TOKEN: guardian.token() + "worker"}
pauses = "[sys.executable, '-c', 'import signal; signal.pause()']"
starts_another = f"import subprocess, sys; print(subprocess.Popen({pauses}, stdout=2).pid)"
command = [sys.executable, "-c", starts_another]
child = subprocess.run(command, env=env, text=True, stdout=subprocess.PIPE, check=True)
print(child.stdout, flush=True)
for child in psutil.Process().children():
    child.kill()
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("guard", ["detached", "child"])
def test_a_process_that_takes_its_children_along_needs_a_guard_that_is_none(
    eventually, gone, guard
):
    """Ray ends its processes like this.

    What a worker started is found by the guard that has left them, and not by the other.
    """
    with subprocess.Popen(
        [sys.executable, "-c", TAKES_ITS_CHILDREN_ALONG, guard], stdout=subprocess.PIPE, text=True
    ) as parent:
        orphan = int(parent.stdout.readline())
        parent.wait(timeout=30)
        if guard == "detached":
            assert eventually(lambda: gone(orphan))
        else:
            assert not gone(orphan)
            os.kill(orphan, signal.SIGKILL)
