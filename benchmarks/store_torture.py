"""Writers of one store that are killed at random: no run is lost, none is doubled.

    python benchmarks/store_torture.py [--writers 8] [--each 1000] [--kills 60] [--postgresql]

Each writer adds runs and then their outcomes, some fifty a session, and notes each whose outcome it
was told is kept in a file of its own: the witness. A writer that was killed is started again where
its witness ends. At the end the store is read by its database's own driver, and what the witnesses
have is held against it. Exits 1 where anything is lost, doubled, without its outcome or left in a
spool, or a writer failed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
SQLITE = "sqlite:///history.db"
RUNS_A_SESSION = 50
OUTCOME = "PASS"
QUERY = "SELECT id, outcome FROM llmperf_records"
METRICS = (
    "SELECT r.id, count(*) FROM llmperf_records r JOIN llmperf_metrics m ON m.record_seq = r.seq "
    "GROUP BY r.id"
)
LOOK_S = 0.05
LONGEST_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of the runs that writers were told are kept."""

    acknowledged: int
    lost: int
    doubled: int
    without_outcome: int
    spooled: int
    failed_writers: int
    kills: int
    took_s: float

    @property
    def sound(self) -> bool:
        """Whether nothing went wrong."""
        wrong = (self.lost, self.doubled, self.without_outcome, self.spooled, self.failed_writers)
        return not any(wrong)


def torture(
    folder: Path, url: str, *, writers: int, each: int, kills: int, seed: int = 0, forget: int = 0
) -> Counts:
    """Write, kill and count. Every `forget`-th outcome is left out (0: none), as a bug would."""
    from pytest_llmperf.history.store import open_store  # noqa: PLC0415 - as needed

    began_s = time.monotonic()
    open_store(url, folder=folder).close()
    n_killed, failed = _write_and_kill(folder, url, writers, each, kills, seed, forget)
    with open_store(url, folder=folder) as store:
        spooled = store._spool.pending()  # noqa: SLF001 - what waits
    acknowledged = [
        line for name in _names(writers) for line in _witness(folder, name).read_text().split()
    ]
    outcomes, n_metrics = _stored(folder, url)
    n_rows = Counter(record_id for record_id, _ in outcomes)
    by_id = dict(outcomes)
    usual = Counter(n_metrics.values()).most_common(1)[0][0] if n_metrics else 0
    return Counts(
        acknowledged=len(set(acknowledged)),
        lost=sum(line not in by_id for line in set(acknowledged)),
        doubled=sum(n > 1 for n in n_rows.values()) + sum(n != usual for n in n_metrics.values()),
        without_outcome=sum(by_id.get(line, OUTCOME) != OUTCOME for line in set(acknowledged)),
        spooled=spooled,
        failed_writers=failed,
        kills=n_killed,
        took_s=time.monotonic() - began_s,
    )


def _write_and_kill(
    folder: Path, url: str, writers: int, each: int, kills: int, seed: int, forget: int
) -> tuple[int, int]:
    """Run all writers to their end; return how many were killed, and how many failed."""
    draw = random.Random(seed)  # noqa: S311 - the same moments in every run
    moments = sorted(draw.randrange(writers * each) for _ in range(kills))
    words = (folder, url, each, forget)
    running = {name: _start(name, *words) for name in _names(writers)}
    n_killed = failed = 0
    end_s = time.monotonic() + LONGEST_S
    while running and time.monotonic() < end_s:
        time.sleep(LOOK_S)
        n_written = sum(_n_lines(_witness(folder, name)) for name in _names(writers))
        if n_killed < len(moments) and n_written >= moments[n_killed]:
            name = draw.choice(sorted(running))
            running[name].kill()
            running[name].wait()
            running[name] = _start(name, *words)
            n_killed += 1
        for name, process in list(running.items()):
            if process.poll() is not None:
                failed += process.returncode != 0
                del running[name]
    for process in running.values():
        process.kill()
    return n_killed, failed + len(running)


def _names(writers: int) -> list[str]:
    return [f"w{number}" for number in range(writers)]


def _witness(folder: Path, name: str) -> Path:
    return folder / f"{name}.witness"


def _n_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _start(name: str, folder: Path, url: str, each: int, forget: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, __file__, "--writer", name, str(folder), url, str(each), str(forget)]
    return subprocess.Popen(words)


def write(name: str, folder: Path, url: str, each: int, forget: int) -> None:
    """Write runs from where the witness ends, over several sessions."""
    sys.path.insert(0, str(TESTS))
    from support.history_records import record  # noqa: PLC0415 - as needed

    from pytest_llmperf.history.store import open_for_session  # noqa: PLC0415 - as needed

    file = _witness(folder, name)
    witness = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for start in range(_n_lines(file), each, RUNS_A_SESSION):
        with open_for_session(url, folder=folder) as store:
            for number in range(start, min(start + RUNS_A_SESSION, each)):
                record_id = f"{name}-{number}"
                store.add(record(record_id, outcome="UNFINISHED"))
                if not forget or number % forget:
                    store.update_outcome(record_id, OUTCOME)
                os.write(witness, f"{record_id}\n".encode())


def _stored(folder: Path, url: str) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Return the id and outcome of every row, and the number of metrics of each run."""
    with closing(_connection(folder, url)) as connection:
        cursor = connection.cursor()
        outcomes = cursor.execute(QUERY).fetchall()
        metrics = cursor.execute(METRICS).fetchall()
    return outcomes, dict(metrics)


def _connection(folder: Path, url: str) -> Any:
    if url == SQLITE:
        return sqlite3.connect(folder / "history.db")
    import psycopg  # noqa: PLC0415 - as needed

    return psycopg.connect(url.replace("+psycopg", ""))


@contextmanager
def _url(*, postgresql: bool) -> Iterator[str]:
    """Give the URL of an empty store; of a server that is started for it."""
    if not postgresql:
        yield SQLITE
        return
    sys.path.insert(0, str(TESTS))
    from support.postgresql_server import binaries, running  # noqa: PLC0415 - as needed

    folder = binaries()
    if folder is None:
        raise SystemExit("PostgreSQL's server programs (initdb, pg_ctl) are not installed")
    with running(folder) as server:
        yield server.database()


def main() -> int:
    """Print what became of the runs; the exit status is 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--each", type=int, default=1000, help="runs of each writer")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--postgresql", action="store_true", help="on a server of its own")
    options = parser.parse_args()
    with _url(postgresql=options.postgresql) as url, tempfile.TemporaryDirectory() as folder:
        counts = torture(
            Path(folder),
            url,
            writers=options.writers,
            each=options.each,
            kills=options.kills,
            seed=options.seed,
        )
    print(", ".join(f"{name} {value:g}" for name, value in asdict(counts).items()))
    return int(not counts.sound)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--writer"]:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        write(sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
    else:
        sys.exit(main())
