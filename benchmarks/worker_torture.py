"""Starts workers and ends them at random moments: nothing of them may be left.

    python benchmarks/worker_torture.py -n 1000

Each round starts a worker with a child in a session of its own, and ends it in a drawn way after a
drawn time: as a session does, by a signal to the worker or to its fork server, stopped before, in a
start or in a call. Then it is counted what is left: processes that carry this session's token,
zombies, and open files of this process. The scripted engine is used, whose workers start in 20 ms.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.processes import TOKEN
from pytest_llmperf.testing import scripted_plan
from pytest_llmperf.wire.commands import Open, Run
from pytest_llmperf.workers import forkservers, guardian
from pytest_llmperf.workers.group import WorkerGroup
from pytest_llmperf.workloads import Decode

ENDINGS = ("close", "kill", "worker SIGKILL", "worker SIGSTOP", "server SIGKILL", "server SIGSTOP")
MOMENTS = ("start", "open", "run")
LONGEST_S = 0.03
SETTLE_S = 10.0


@dataclass
class Left:
    """What was left over all rounds, by kind, and how the workers were started."""

    orphans: int = 0
    zombies: int = 0
    files: int = 0
    started: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        ways = ", ".join(f"{n} {way}" for way, n in sorted(self.started.items()))
        return f"{self.orphans} orphans, {self.zombies} zombies, {self.files} files left ({ways})"


def torture(n_rounds: int, logs: Path, seed: int = 0) -> Left:
    """Start and end `n_rounds` workers; return what was left."""
    draw = random.Random(seed)  # noqa: S311 - the same moments in every run
    left = Left()
    _one_round("close", "run", draw, logs)
    n_files = _n_open_files()
    for _ in range(n_rounds):
        started = _one_round(draw.choice(ENDINGS), draw.choice(MOMENTS), draw, logs)
        left.started[started.split(" ", maxsplit=1)[0]] += 1
        orphans, zombies = _settled()
        left.orphans += orphans
        left.zombies += zombies
    forkservers.end_all()
    left.zombies += _counts()[1]
    left.files = max(0, _n_open_files() - n_files)
    return left


def _one_round(ending: str, moment: str, draw: random.Random, logs: Path) -> str:
    """Start a worker, end it in this way, and return how it was started."""
    server = _server_pid()
    if moment == "start" and ending.startswith("server") and server is not None:
        threading.Timer(draw.uniform(0, LONGEST_S), _signal, (server, ending)).start()
    try:
        group = WorkerGroup.start(log_dir=logs, name="torture", fork_engine="scripted")
    except LlmperfError as error:
        return f"failed {type(error).__name__}"
    try:
        _work_until(group, ending, moment, draw)
    finally:
        group.close() if ending == "close" else group.kill()
    return group.started


def _work_until(group: WorkerGroup, ending: str, moment: str, draw: random.Random) -> None:
    """Give the worker something to do, and end it or its server meanwhile."""
    target = _target(group, ending)
    timer = threading.Timer(draw.uniform(0, LONGEST_S), _signal, (target, ending))
    if target is not None:
        timer.start()
    with suppress(LlmperfError):
        if moment != "start":
            group.call(Open(plan=scripted_plan("fault=child@open")), deadline_s=1)
        if moment == "run":
            group.call(Run(workload=Decode(), repetition=0), deadline_s=1)
    timer.cancel()


def _target(group: WorkerGroup, ending: str) -> int | None:
    if ending.startswith("worker"):
        return group.pids[0]
    return _server_pid() if ending.startswith("server") else None


def _signal(pid: int | None, ending: str) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, ending.split()[1]))


def _server_pid() -> int | None:
    pids = forkservers.pids()
    return pids[0] if pids else None


def _settled() -> tuple[int, int]:
    """Return how many processes and zombies are left when nothing more ends by itself."""
    end_s = time.monotonic() + SETTLE_S
    while any(counts := _counts()) and time.monotonic() < end_s:
        time.sleep(0.02)
    return counts


def _counts() -> tuple[int, int]:
    """Count what carries this session's token and is no server, and zombies of ours."""
    servers = set(forkservers.pids())
    orphans = zombies = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            ours = process.ppid() in {os.getpid(), *servers}
            if process.pid in servers:
                continue  # a killed one is reaped when it is asked again
            if process.status() == psutil.STATUS_ZOMBIE:
                zombies += ours
            else:
                orphans += process.environ().get(TOKEN, "").startswith(guardian.token())
    return orphans, zombies


def _n_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def main() -> int:
    """Print what was left; the exit status is 1 where anything was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1000, help="rounds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as logs:
        left = torture(options.n, Path(logs), options.seed)
    print(f"{options.n} workers in {time.monotonic() - began_s:.0f} s: {left}")
    return int(bool(left.orphans or left.zombies or left.files))


if __name__ == "__main__":
    sys.exit(main())
