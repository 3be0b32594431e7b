"""What `torture.py` sees from outside: the processes of a round, and what its stores hold."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MARK = "LLMPERF_TORTURE_ROUND"
FAULTS = ("orphans", "lost", "doubled", "wrong", "hangs")
READY_S = 60.0
KINDS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("guard", lambda line: "pytest_llmperf.worker.guard" in line),
    ("fork server", lambda line: "pytest_llmperf.worker.forkserver" in line),
    ("worker", lambda line: "pytest_llmperf.worker " in line),
    ("server", lambda line: "stub_server.py" in line),
    ("grandchild", lambda line: "signal.pause()" in line),
    ("xdist worker", lambda line: "exec(eval(sys.stdin.readline()))" in line),
    ("pytest", lambda line: "-m pytest" in line),
)


@dataclass
class Tally:
    """What was done and what was counted, over all lanes."""

    rounds: int = 0
    witnessed: int = 0
    verdicts: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    disturbances: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def n_hits(self) -> int:
        """Signals that reached a process."""
        return self.hits.total()

    def add(self, fault: str, detail: str) -> None:
        """Count a fault."""
        with self.lock:
            self.faults[fault] += 1
            self.details.append(f"{fault}: {detail}")

    def as_dict(self) -> dict[str, object]:
        """Return all as plain values."""
        return {
            "rounds": self.rounds,
            "signals": self.n_hits,
            "witnessed runs": self.witnessed,
            "verdicts": self.verdicts,
            "hits": dict(sorted(self.hits.items())),
            "disturbances": dict(sorted(self.disturbances.items())),
            **{fault: self.faults[fault] for fault in FAULTS},
            "details": self.details[:50],
        }


def kept(folder: Path, witnessed: set[str]) -> tuple[set[str], list[str]]:
    """Return the ids in every store and spool of a folder, and what a store has twice.

    Of sessions with a witnessed run, that is a test with two runs as well.
    """
    ids: set[str] = set()
    doubled: list[str] = []
    for file in folder.glob("*.db*"):
        if file.name.endswith((".lock", "-wal", "-shm")) or "spool" in file.name:
            continue
        with suppress(sqlite3.Error), closing(sqlite3.connect(file, timeout=30)) as connection:
            rows = connection.execute("select id, session_id, test from llmperf_records").fetchall()
            ids.update(row[0] for row in rows)
            sessions = {row[1] for row in rows if row[0] in witnessed}
            doubled += _more_than_once(row[0] for row in rows)
            doubled += _more_than_once(str(row[1:]) for row in rows if row[1] in sessions)
    for file in folder.glob("*spool*"):
        ids.update(_spooled(file))
    return ids, doubled


def _more_than_once(names: Iterable[str]) -> list[str]:
    """Return the names that are there several times."""
    return [name for name, n in Counter(names).items() if n > 1]


def _spooled(file: Path) -> Iterator[str]:
    """Give the id of each record in a spool."""
    with suppress(OSError):
        for line in file.read_bytes().splitlines():
            with suppress(ValueError):
                yield json.loads(line).get("add", {}).get("id", "")


def marked(mark: str) -> Iterator[tuple[str, psutil.Process]]:
    """Give each process of a round that runs, with its kind."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) != mark:
                continue
            if process.status() != psutil.STATUS_ZOMBIE:
                yield _kind(process), process


def _kind(process: psutil.Process) -> str:
    line = " ".join(process.cmdline()) + " "
    kind = next((name for name, is_kind in KINDS if is_kind(line)), "other")
    if kind == "fork server" and "forkserver" in " ".join(_parent_line(process)):
        return "worker"
    return kind


def _parent_line(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        parent = process.parent()
        return parent.cmdline() if parent is not None else []
    return []


def wait_for_work(session: subprocess.Popen[str], mark: str, kind: str) -> None:
    """Wait until a process of this kind is there."""
    end_s = time.monotonic() + READY_S
    while session.poll() is None and time.monotonic() < end_s:
        if any(there == kind for there, _ in marked(mark)):
            return
        time.sleep(0.05)


def kill_marked(mark: str) -> None:
    """End each process of a round."""
    for _, process in list(marked(mark)):
        with suppress(psutil.Error):
            process.kill()
