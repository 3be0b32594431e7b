"""CPU time is that of all threads, of living children, and of those that ended; sleep is none."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pytest_llmperf.instruments import cpu_time
from pytest_llmperf.instruments.cpu_time import CpuTimer, trees_s

WORK_S = 0.08

_WORK = "import time\nwhile time.process_time() < {seconds}: pass\n"
_CHILD = _WORK + "print('worked', flush=True)\ninput()\n"
_PARENT = (
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE,"
    " stdout=subprocess.PIPE, text=True)\n"
    "child.stdout.readline()\n"
    "print('worked', flush=True)\n"
    "input()\n"
    "child.communicate('')\n"
)

_PROCESSES: dict[int, subprocess.Popen[str]] = {}


def work(seconds: float = WORK_S) -> None:
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass


def started() -> CpuTimer:
    timer = CpuTimer()
    timer.start()
    return timer


@contextmanager
def worked(script: str) -> Iterator[int]:
    """Start a process that works, and give its id while it waits to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    _PROCESSES[process.pid] = process
    try:
        yield process.pid
    finally:
        process.communicate("\n")


def say(pid: int) -> None:
    """Let a process go on, and wait until it has worked."""
    process = _PROCESSES[pid]
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    process.stdout.readline()


def test_work_counts_and_sleep_does_not():
    timer = started()
    time.sleep(0.2)
    assert timer.elapsed_s() < WORK_S / 2
    work()
    assert WORK_S <= timer.elapsed_s() < 2 * WORK_S


def test_work_below_a_tick_of_the_kernel_is_seen():
    """`/proc/PID/stat` would show 0 or 10 ms."""
    timer = started()
    work(0.002)
    assert 0.002 <= timer.elapsed_s() < 0.009


def test_every_thread_counts():
    timer = started()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert timer.elapsed_s() >= 3 * WORK_S


def test_a_child_counts_while_it_lives_and_when_it_has_ended():
    timer = started()
    with worked(_CHILD.format(seconds=WORK_S)):
        living_s = timer.elapsed_s()
        assert living_s >= WORK_S
    assert timer.elapsed_s() >= living_s - 0.011


def test_a_grandchild_counts():
    timer = started()
    with worked(_PARENT.format(child=_CHILD.format(seconds=4 * WORK_S))):
        assert timer.elapsed_s() >= 4 * WORK_S


def test_children_are_seen_where_the_kernel_keeps_no_list_of_them(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu_time, "Path", lambda _: tmp_path / "nothing")
    timer = started()
    with worked(_CHILD.format(seconds=WORK_S)):
        assert timer.elapsed_s() >= WORK_S


def test_a_process_is_timed_by_ticks_where_it_has_no_clock(monkeypatch):
    monkeypatch.setattr(cpu_time, "_clock_s", lambda _: None)
    with worked(_CHILD.format(seconds=WORK_S)) as pid:
        assert trees_s([pid]) >= WORK_S - 0.011


def test_a_peer_counts_and_a_stranger_does_not(monkeypatch):
    own = monkeypatch.context
    with worked("print(flush=True)\ninput()\n" + _CHILD.format(seconds=WORK_S)) as pid, own() as m:
        m.setattr(cpu_time, "_children", lambda _: [])
        with_peer, alone = CpuTimer([pid]), CpuTimer()
        with_peer.start()
        alone.start()
        say(pid)
        assert with_peer.elapsed_s() >= WORK_S / 2  # the rest it took to start
        assert alone.elapsed_s() < WORK_S / 4


def test_a_process_that_is_gone_has_no_time():
    with worked(_WORK.format(seconds=0) + "print()\ninput()") as pid:
        pass
    assert trees_s([pid]) == pytest.approx(0.0)
