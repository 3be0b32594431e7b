"""A worker that floods its log hangs nobody, and fills neither memory nor the disk."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_llmperf.errors import WorkerDied, WorkerHung
from pytest_llmperf.testing import scripted_plan
from pytest_llmperf.wire.commands import Open
from pytest_llmperf.workers import logs

MIB = 2**20
FLOOD_BYTES = 1500 * MIB

WORKER = """
import faulthandler, os, signal, socket, sys, time
from pytest_llmperf.wire.frames import worker_end
from pytest_llmperf.wire.messages import Hello
faulthandler.register(signal.SIGUSR1, all_threads=True)
wire = worker_end(socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1])))
print("first line", flush=True)
wire.send(Hello(rank=0, pid=os.getpid(), python="3"), timeout_s=None)
wire.receive(timeout_s=None)
def flooding_its_log(n_bytes):
    block = (b"y" * 1000 + b"\\n") * 1000
    for _ in range(n_bytes // len(block)):
        os.write(1, block)
"""
FLOOD = f"{WORKER}\nflooding_its_log({FLOOD_BYTES})\ntime.sleep(600)"
WRITER = """
import os
for _ in range(6):
    os.write(1, b"a" * 2**20)
input()
os.write(1, b"end")
"""
FLOOD_AND_DIE = (
    f"{WORKER}\nflooding_its_log({400 * MIB})\nprint('last line', flush=True)\nos._exit(5)"
)


@pytest.fixture
def fork_engine() -> str:
    """No fork: the worker is a program of ours."""
    return ""


@pytest.fixture
def small_logs(monkeypatch):
    """Logs may take 4 MiB."""
    monkeypatch.setattr(logs, "LARGEST_BYTES", 4 * MIB)
    monkeypatch.setattr(logs, "_LOOK_S", 0.02)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def taken_bytes(folder: Path) -> Iterator[list[int]]:
    """What logs take of the disk, looked at again and again."""
    taken, ended = [0], threading.Event()

    def look():
        while not ended.wait(0.01):
            taken.extend(path.stat().st_blocks * 512 for path in folder.glob("*.log"))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield taken
    finally:
        ended.set()
        watcher.join()


def sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.log"))


def test_a_worker_that_floods_its_log_is_ended_at_its_deadline(start, tmp_path):
    """Its stacks are found in the flood; neither the message nor memory holds the flood."""
    before_mib = peak_mib()
    group = start(program=("-c", FLOOD))
    with pytest.raises(WorkerHung) as caught:
        group.call(Open(plan=scripted_plan("")), deadline_s=0.3)
    assert "in flooding_its_log" in str(caught.value)
    assert len(str(caught.value)) < 100_000
    assert peak_mib() - before_mib < 100
    assert sizes(tmp_path) <= logs.LARGEST_BYTES


def test_a_flooded_log_keeps_its_beginning_and_its_end(start, tmp_path, small_logs):
    """Its end is what the error shows. Of 400 MiB the disk never holds the half."""
    group = start(program=("-c", FLOOD_AND_DIE))
    with (
        taken_bytes(tmp_path) as taken,
        pytest.raises(WorkerDied, match=r"(?s)exit code 5.*last line"),
    ):
        group.call(Open(plan=scripted_plan("")), deadline_s=60)
    group.kill()
    assert max(taken) < 200 * MIB
    (log,) = tmp_path.glob("*.log")
    text = log.read_bytes()
    assert len(text) <= 4 * MIB
    assert text.startswith(b"first line\n")
    assert b"bytes of this log were cut out here" in text
    assert text.endswith(b"last line\n")


def test_stacks_are_found_behind_a_flood(tmp_path):
    """What a worker prints before its signal's handler has run is passed over."""
    path = tmp_path / "x-rank0.log"
    stack = b"Thread 0x00007f (most recent call first):\n  File"
    path.write_bytes(b"old " * 10 + b"y" * MIB + stack + b"z" * MIB)
    text = logs.stacks(path, 40)
    assert text.startswith(stack.decode())
    assert len(text) == logs.TAIL_BYTES


def test_a_log_that_is_small_stays_whole(tmp_path):
    """To the byte at which it is cut."""
    path = tmp_path / "x-rank0.log"
    path.write_bytes(b"z" * logs.LARGEST_BYTES)
    logs.cut(path)
    assert path.stat().st_size == logs.LARGEST_BYTES


@pytest.mark.parametrize("has_holes", [True, False])
def test_a_log_is_thinned_while_it_is_written_to(tmp_path, small_logs, monkeypatch, has_holes):
    """What is written next follows it, also where the file system makes no holes."""
    if not has_holes:
        monkeypatch.setattr(logs, "_make_hole", lambda *_: False)
    path = tmp_path / "x-rank0.log"
    with logs.create(path) as output:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=output
        )
    while path.stat().st_size < 6 * MIB:
        time.sleep(0.01)
    logs.thin(path)
    assert path.stat().st_blocks * 512 < 2 * MIB
    process.communicate(b"\n")
    assert path.read_bytes().endswith(b"aend")
    logs.cut(path)
    assert path.read_bytes().endswith(b"aend")
    assert path.stat().st_size < 2 * MIB


def test_a_log_that_is_gone_has_no_lines(start, tmp_path):
    """The error is that of the worker, not of its log."""
    group = start(program=("-c", f"{WORKER}\nos._exit(5)"))
    for log in tmp_path.glob("*.log"):
        log.unlink()
    with pytest.raises(WorkerDied, match="exit code 5"):
        group.call(Open(plan=scripted_plan("")), deadline_s=60)


FORKING = """
import os, signal, threading, time
from pathlib import Path
from pytest_llmperf.workers import logs
inside = threading.Event()
def hold():
    with logs.uncut():
        inside.set()
        time.sleep(0.3)
threading.Thread(target=hold).start()
inside.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(5)
    threading.Thread(target=logs.tail, args=(Path("none"), 1)).start()
    with logs.uncut():
        pass
else:
    print(os.waitpid(pid, 0)[1])
"""


def test_a_fork_of_this_process_inherits_no_lock():
    """Another thread may look at the logs when a test of the user's forks."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "0"


def test_the_oldest_logs_of_earlier_sessions_are_removed(tmp_path, monkeypatch):
    """Not those of the last hour, whose session may still run, nor another's files."""
    monkeypatch.setattr(logs, "KEPT_FILES", 3)
    now_s = time.time()
    for age in range(6):
        path = tmp_path / f"m-1-{age}-rank0.log"
        path.touch()
        os.utime(path, (now_s - 7200 - age, now_s - 7200 - age))
    (tmp_path / "m-1-9-rank0.log").touch()
    (tmp_path / "notes.txt").touch()
    logs.prune(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["m-1-0-rank0.log", "m-1-1-rank0.log", "m-1-9-rank0.log", "notes.txt"]


def test_logs_that_are_too_large_together_are_removed(tmp_path, monkeypatch):
    """The newest stay."""
    monkeypatch.setattr(logs, "KEPT_FOLDER_BYTES", 2500)
    for age in range(4):
        path = tmp_path / f"m-1-{age}-rank0.log"
        path.write_bytes(b"x" * 1000)
        os.utime(path, (10_000 - age, 10_000 - age))
    logs.prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "m-1-0-rank0.log",
        "m-1-1-rank0.log",
    ]
