"""Writers of one SQLite store that hardly wait for each other and are killed at random.

Run `python store_swarm.py FOLDER NAME RECORDS SEED [PASS-BY]` for one writer: it adds records and
then their outcomes, and prints the id of each whose outcome it was told is kept. With `PASS-BY` it
writes no outcome of every tenth: what a lost one looks like.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

URL = "sqlite:///history.db"
BUSY_S = 0.01


def write(folder: Path, name: str, n_records: int, seed: int, *, pass_by: bool) -> None:
    """Add records and their outcomes, over several sessions."""
    from support.history_records import record

    from pytest_llmperf.history import store as store_module

    store_module.RETRY_S = (0.05, 0.2)
    rng = random.Random(seed)
    for start in range(0, n_records, 20):
        with store_module.open_for_session(URL, folder=folder, busy_s=BUSY_S) as store:
            for number in range(start, min(start + 20, n_records)):
                record_id = f"{name}-{number}"
                store.add(record(record_id, outcome="UNFINISHED"))
                time.sleep(rng.uniform(0, 0.002))
                if not (pass_by and number % 10 == 0):
                    store.update_outcome(record_id, "PASS")
                os.write(1, f"{record_id}\n".encode())


def swarm(
    folder: Path, *, writers: int, records: int, kills: int, seed: int, pass_by: bool = False
) -> dict[str, int]:
    """Run writers, kill some and start others in their place; count what became of each record."""
    from pytest_llmperf.history.store import open_store

    rng = random.Random(seed)
    open_store(URL, folder=folder).close()
    processes = [_start(folder, f"w{i}", records, i, pass_by=pass_by) for i in range(writers)]
    for number in range(kills):
        time.sleep(rng.uniform(0.05, 0.4))
        rng.choice(processes).kill()
        name = f"k{number}"
        processes.append(_start(folder, name, records // 4, number, pass_by=pass_by))
    lines = [line for process in processes for line in process.communicate()[0].splitlines()]
    failed = sum(process.returncode not in {0, -9} for process in processes)
    with open_store(URL, folder=folder) as store:
        outcomes = {entry.id: entry.outcome for entry in store.records()}
        waiting = store._spool.pending()
    return {
        "acknowledged": len(lines),
        "lost": sum(line not in outcomes for line in lines),
        "without_outcome": sum(outcomes.get(line) == "UNFINISHED" for line in lines),
        "errors": failed,
        "waiting": waiting,
    }


def _start(
    folder: Path, name: str, records: int, seed: int, *, pass_by: bool
) -> subprocess.Popen[str]:
    words = [sys.executable, __file__, str(folder), name, str(records), str(seed)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    return subprocess.Popen(
        [*words, *(["PASS-BY"] if pass_by else [])],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


if __name__ == "__main__":
    write(
        Path(sys.argv[1]),
        sys.argv[2],
        int(sys.argv[3]),
        int(sys.argv[4]),
        pass_by=sys.argv[5:] == ["PASS-BY"],
    )
