"""Sessions whose processes are killed and stopped at random lose nothing and leave nothing.

    python benchmarks/torture.py --hits 2000 --seconds 3600 [--lanes 2] [--seed 0] [--out FILE]

Each round runs pytest in a project of scripted models that lease the device (plain, under
pytest-xdist, with ranks, with grandchildren) or of a server that the tests start, and sends signals
at random moments to its processes, whatever they are: pytest, xdist's workers, workers, ranks, the
fork server, the guard, a server, a grandchild. Some rounds move or delete the store, let no file
grow, or have a clock that is ahead. The witness is the project's conftest, which notes each run
that a report carried. After each round it is counted:

* orphans: processes with the round's mark in their environment, ten seconds after the end;
* lost: runs that were witnessed and are in no store, spool or copy that lies in the project;
* doubled: runs that a store has twice, or twice for one test of one session;
* wrong verdicts: tests whose true claim was reported as failed, an INTERNALERROR of ours, and, in
  sessions between the rounds, a gate that fails at the same speed or passes at one 30 % lower;
* hangs: sessions that did not end in two minutes.

Exits 1 where anything was counted. Ends after so many signals or seconds, whichever comes first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import torture_projects as projects
from msgspec.structs import replace

from pytest_llmperf.core.record import Record
from pytest_llmperf.history.store import open_store

MARK = "LLMPERF_TORTURE_ROUND"
STUB = Path(__file__).resolve().parent.parent / "tests" / "support" / "stub_server.py"
SESSION_S = 120.0
MEAN_GAP_S = 1.5
"""Between two signals: some come at once, and some runs reach their report."""
JUDGED_S = 300.0
"""Of a session that may measure a suspicion again, in fresh processes."""
EARLY_SHARE = 0.15
"""Of rounds whose signals may come before a model is loaded."""
PYTEST_SHARE = 0.2
"""How often pytest's own process may be drawn."""
SETTLE_S = 10.0
LONGEST_STOP_S = 1.5
READY_S = 20.0
ROUNDS_A_VERDICT = 8
ACCEPTED = 9
"""Sessions at the same speed before the first verdict."""
SMALL_FILES = ("sh", "-c", 'ulimit -f 300; exec "$@"', "sh")
"""No file may be larger than 300 blocks of 512 bytes."""
SIGNALS = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP")
FAULTS = ("orphans", "lost", "doubled", "wrong", "hangs")
KINDS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("guard", lambda line: "pytest_llmperf.worker.guard" in line),
    ("fork server", lambda line: "pytest_llmperf.worker.forkserver" in line),
    ("worker", lambda line: "pytest_llmperf.worker " in line),
    ("server", lambda line: "stub_server.py" in line),
    ("grandchild", lambda line: "signal.pause()" in line),
    ("xdist worker", lambda line: "exec(eval(sys.stdin.readline()))" in line),
    ("pytest", lambda line: "-m pytest" in line),
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a round runs. `faults` are drawn besides the signals."""

    name: str
    text: str
    arguments: tuple[str, ...] = ()


SHAPES = (
    Shape(name="plain", text=projects.scripted()),
    Shape(name="grandchildren", text=projects.scripted(fault="child@open")),
    Shape(name="ranks", text=projects.scripted(strategy="tp2")),
    Shape(name="xdist", text=projects.scripted(), arguments=("-n", "2")),
    Shape(
        name="server",
        text=projects.server(f"{sys.executable} {STUB} --port {{port}}"),
        arguments=("--llmperf-allow-load",),
    ),
)
DISTURBANCES = ("", "", "", "", "", "move the store", "delete the store", "small files", "clock")


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


class Lane:
    """Rounds one after another, in projects of its own. Lanes share the queue of leases."""

    def __init__(self, folder: Path, tally: Tally, draw: random.Random, engine: Path) -> None:
        self._folder = folder
        self._tally = tally
        self._draw = draw
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(engine), *sys.path]),
            "TMPDIR": str(engine.parent / "tmp"),
            "LLMPERF_CACHE": str(engine.parent / "cache"),
        }
        self._round = 0

    def accept(self) -> None:
        """Store the sessions that later ones are held against: a real one, and others like it."""
        code, output = self._judged_session("10ms", "--llmperf-gate=off")
        if code != 0:
            self._tally.add("wrong", f"the first session failed: {output[-1500:]}")
        folder = self._folder / SHAPES[0].name
        with open_store("sqlite:///.llmperf/history.db", folder=folder) as store:
            records = list(store.records())
            for number in range(ACCEPTED):
                factor = math.exp(self._draw.gauss(0, 0.003))
                store.add_many([_like(record, number, factor) for record in records])

    def one_round(self, shape: Shape) -> None:
        """Run a session, disturb it, and count what became of it."""
        self._round += 1
        project = self._folder / shape.name
        projects.write_project(project, shape.text)
        # The history of the plain project is held against later sessions.
        disturbance = "" if shape.name == "plain" else self._draw.choice(DISTURBANCES)
        mark = f"{self._folder.name}-{self._round}-{self._draw.getrandbits(32):08x}"
        session = self._start(project, shape.arguments, mark, disturbance)
        self._disturb(session, mark, shape, disturbance)
        output = self._end_of(session, shape, mark)
        self._count_orphans(mark, shape)
        self._count_words(output, shape)
        self._count_runs(project, output, shape)
        with self._tally.lock:
            self._tally.rounds += 1
            self._tally.disturbances[disturbance or "none"] += 1

    def verdicts(self) -> None:
        """Hold sessions against the history that rounds have left: the same speed, and a lower."""
        for tpot, is_good in (("10ms", True), ("14ms", False)):
            code, output = self._judged_session(tpot)
            if code is None:
                self._tally.add("hangs", f"gate at {tpot}: {output[-1500:]}")
            elif (code == 0) is not is_good:
                self._tally.add("wrong", f"gate at {tpot}: {output[-1500:]}")
            with self._tally.lock:
                self._tally.verdicts += 1

    def _judged_session(self, tpot: str, gate: str = "--llmperf-gate") -> tuple[int | None, str]:
        """Run a test of the plain project under the gate.

        Returns its exit code, None where it did not end, and what it printed.
        """
        project = self._folder / SHAPES[0].name
        projects.write_project(project, projects.scripted(tpot=tpot, sleep=0))
        mark = f"verdict-{self._folder.name}"
        arguments = ("test_it.py::test_speed[0]", gate)
        session = self._start(project, arguments, mark, "")
        with suppress(subprocess.TimeoutExpired):
            return session.wait(JUDGED_S), self._output(SHAPES[0])
        _kill_marked(mark)
        return None, self._output(SHAPES[0])

    def _start(
        self, project: Path, arguments: tuple[str, ...], mark: str, disturbance: str
    ) -> subprocess.Popen[str]:
        ahead = {"TORTURE_DAYS_AHEAD": "400"} if disturbance == "clock" else {}
        limits = SMALL_FILES if disturbance == "small files" else ()
        command = [*limits, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        output = (project / "output.txt").open("w+")
        session = subprocess.Popen(
            [*command, "--llmperf-wait=90", "--llmperf-timeout=60", *arguments],
            cwd=project,
            env={**self._environment, MARK: mark, **ahead},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
        output.close()
        return session

    def _disturb(
        self, session: subprocess.Popen[str], mark: str, shape: Shape, disturbance: str
    ) -> None:
        """Send signals until the session ends, or pytest itself was hit."""
        if self._draw.random() < EARLY_SHARE:
            time.sleep(self._draw.uniform(0.0, 2.0))
        else:
            _wait_for_work(session, mark)
        time.sleep(self._draw.uniform(0.0, 1.0))
        if disturbance.endswith("the store"):
            self._take_store_away(self._folder / shape.name, disturbance)
        is_over = False
        while session.poll() is None and not is_over:
            is_over = self._hit(mark, shape)
            time.sleep(self._draw.expovariate(1 / MEAN_GAP_S))

    def _hit(self, mark: str, shape: Shape) -> bool:
        """Signal one process of a kind that is drawn; return whether it was pytest's own."""
        by_kind: dict[str, list[psutil.Process]] = {}
        for kind, process in _marked(mark):
            by_kind.setdefault(kind, []).append(process)
        if shape.name == "ranks" and "worker" in by_kind:
            by_kind["rank"] = by_kind.pop("worker")
        kinds = [kind for kind in by_kind if kind != "pytest" or self._draw.random() < PYTEST_SHARE]
        if not kinds:
            return False
        kind = self._draw.choice(sorted(kinds))
        name = self._draw.choice(SIGNALS)
        target = self._draw.choice(by_kind[kind])
        with suppress(psutil.Error):
            target.send_signal(getattr(signal, name))
            with self._tally.lock:
                self._tally.hits[f"{kind} {name}"] += 1
            if name == "SIGSTOP":
                time.sleep(self._draw.uniform(0.1, LONGEST_STOP_S))
                target.send_signal(signal.SIGCONT)
            return kind == "pytest" and name in {"SIGKILL", "SIGTERM", "SIGINT"}
        return False

    def _take_store_away(self, project: Path, disturbance: str) -> None:
        store = project / ".llmperf" / "history.db"
        with suppress(OSError):
            if disturbance == "move the store":
                store.rename(store.with_name(f"away-{self._draw.getrandbits(32):08x}.db"))
            else:
                store.unlink()

    def _end_of(self, session: subprocess.Popen[str], shape: Shape, mark: str) -> str:
        try:
            session.wait(SESSION_S)
        except subprocess.TimeoutExpired:
            self._tally.add("hangs", f"{shape.name} {mark}")
            _kill_marked(mark)
            session.kill()
            session.wait()
        return self._output(shape)

    def _output(self, shape: Shape) -> str:
        return (self._folder / shape.name / "output.txt").read_text("utf-8", "replace")

    def _count_orphans(self, mark: str, shape: Shape) -> None:
        end_s = time.monotonic() + SETTLE_S
        while (left := list(_marked(mark))) and time.monotonic() < end_s:
            time.sleep(0.05)
        if left:
            kinds = Counter(kind for kind, _ in left)
            self._tally.add("orphans", f"{shape.name} {mark}: {dict(kinds)}")
            _kill_marked(mark)

    def _count_words(self, output: str, shape: Shape) -> None:
        internal = [line for line in output.splitlines() if line.startswith("INTERNALERROR")]
        failed = [
            line
            for line in output.splitlines()
            if line.startswith("FAILED test_it.py") and "crashed while running" not in line
        ]
        if any("pytest_llmperf" in line for line in internal) or failed:
            self._tally.add("wrong", f"{shape.name}: {output[-1500:]}")

    def _count_runs(self, project: Path, output: str, shape: Shape) -> None:
        witness = project / projects.WITNESS
        lines = witness.read_text().split("\n")[:-1] if witness.exists() else []
        said_to_be_lost = "could be kept neither" in output
        kept, doubled = _kept(project / ".llmperf")
        ids = [line.partition(" ")[0] for line in lines]
        lost = [record_id for record_id in ids if record_id not in kept]
        if lost and not said_to_be_lost:
            self._tally.add("lost", f"{shape.name}: {len(lost)}: {output[-800:]}")
        if doubled:
            self._tally.add("doubled", f"{shape.name}: {doubled[:3]}")
        with self._tally.lock:
            self._tally.witnessed += len(ids)
        witness.unlink(missing_ok=True)


def _like(record: Record, number: int, factor: float) -> Record:
    """Return a run of an earlier session, whose values are others by a factor."""
    created = datetime.fromisoformat(record.created) - timedelta(hours=number + 1)
    metrics = tuple(
        replace(metric, value=metric.value * factor) if metric.value else metric
        for metric in record.metrics
    )
    return replace(
        record,
        id=f"{record.id[:24]}-{number}",
        session_id=f"accepted-{number}",
        created=created.isoformat(),
        outcome="PASS",
        metrics=metrics,
    )


def _kept(folder: Path) -> tuple[set[str], list[str]]:
    """Return the ids in every store and spool of a folder, and what a store has twice."""
    kept: set[str] = set()
    doubled: list[str] = []
    for file in folder.glob("*.db*"):
        if file.name.endswith((".lock", "-wal", "-shm")) or "spool" in file.name:
            continue
        with suppress(sqlite3.Error), closing(sqlite3.connect(file, timeout=30)) as connection:
            rows = connection.execute("select id, session_id, test from llmperf_records").fetchall()
            kept.update(row[0] for row in rows)
            doubled += [str(key) for key, n in Counter(row[1:] for row in rows).items() if n > 1]
            doubled += [key for key, n in Counter(row[0] for row in rows).items() if n > 1]
    for file in folder.glob("*spool*"):
        with suppress(OSError):
            for line in file.read_bytes().splitlines():
                with suppress(ValueError):
                    entry = json.loads(line)
                    kept.add(entry.get("add", {}).get("id", ""))
    return kept, doubled


def _marked(mark: str) -> Iterator[tuple[str, psutil.Process]]:
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


def _wait_for_work(session: subprocess.Popen[str], mark: str) -> None:
    """Wait until a model is loaded, or a server is started."""
    end_s = time.monotonic() + READY_S
    while session.poll() is None and time.monotonic() < end_s:
        if any(kind in {"worker", "server"} for kind, _ in _marked(mark)):
            return
        time.sleep(0.05)


def _kill_marked(mark: str) -> None:
    for _, process in list(_marked(mark)):
        with suppress(psutil.Error):
            process.kill()


def torture(
    folder: Path,
    *,
    hits: int,
    seconds: float,
    lanes: int,
    seed: int = 0,
    shapes: Sequence[Shape] = SHAPES,
    history: bool = True,
    out: Path | None = None,
) -> Tally:
    """Run rounds in lanes beside each other; return what was counted.

    With `history`, sessions between the rounds are judged by it.
    """
    engine = folder / "engine"
    for place in (engine, folder / "tmp"):
        place.mkdir()
    projects.write_engine(engine)
    tally, end_s = Tally(), time.monotonic() + seconds
    threads = []
    for number in range(lanes):
        place = folder / f"lane{number}"
        place.mkdir()
        lane = Lane(place, tally, random.Random(1000 * seed + number), engine)  # noqa: S311
        if history:  # in turn: schemas are made by one thread at a time
            lane.accept()
        threads.append(
            threading.Thread(target=_rounds, args=(lane, tally, hits, end_s, shapes, out, history))
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def _rounds(
    lane: Lane,
    tally: Tally,
    hits: int,
    end_s: float,
    shapes: Sequence[Shape],
    out: Path | None,
    history: bool,
) -> None:
    try:
        _go_on(lane, tally, hits, end_s, shapes, out, history=history)
    except Exception:  # noqa: BLE001 - a lane that ends early counts
        tally.add("wrong", f"the torture itself failed: {traceback.format_exc()}")


def _go_on(
    lane: Lane,
    tally: Tally,
    hits: int,
    end_s: float,
    shapes: Sequence[Shape],
    out: Path | None,
    *,
    history: bool,
) -> None:
    number = 0
    while tally.n_hits < hits and time.monotonic() < end_s:
        lane.one_round(shapes[number % len(shapes)])
        number += 1
        if out is not None:
            out.write_text(json.dumps(tally.as_dict(), indent=2) + "\n", encoding="utf-8")
        if history and number % ROUNDS_A_VERDICT == 0:
            lane.verdicts()


def main() -> int:
    """Print what was counted; the exit status is 1 where anything was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hits", type=int, default=2000, help="signals")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="written after each round")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="llmperf-torture-"))
    try:
        tally = torture(
            folder,
            hits=options.hits,
            seconds=options.seconds,
            lanes=options.lanes,
            seed=options.seed,
            out=options.out,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = json.dumps(tally.as_dict(), indent=2)
    print(text)
    return int(any(tally.faults.values()))


if __name__ == "__main__":
    sys.exit(main())
