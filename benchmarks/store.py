"""The history at a million stored runs, and eight processes that write to one store.

python benchmarks/store.py [--runs 1000000] [--processes 8] [--each 1000] [--postgresql] [--out
FOLDER]

Fills a store with copies of a real record (of a scripted run, with all its metrics), then times one
gate decision, `llmperf history` of one series and the opening of a session, each against the same
store with 1,000 runs. Then eight processes write 1,000 runs each to one store. Writes store.json
and store.md to the folder (default build/benchmarks) and exits 1 unless every bar is met. A million
runs take about 10 GB of disk and ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from sqlalchemy import insert

from pytest_llmperf.core import record_json
from pytest_llmperf.core.record import Record
from pytest_llmperf.gate.accepted import accepted_sessions
from pytest_llmperf.gate.past import Question
from pytest_llmperf.history.accept import Reviewed
from pytest_llmperf.history.rows import document, metric_rows, record_row
from pytest_llmperf.history.store import Store, open_store
from pytest_llmperf.history.tables import DOCUMENTS, METRICS, RECORDS

SERIES = 1000
BATCH = 2000
CHANGED = ("id", "test", "session_id", "created")
GATE_MS, HISTORY_MS = 50, 200
TEST = """
import pytest
from pytest_llmperf import Decode

@pytest.mark.llmperf(model="scripted:ttft=50ms,tpot=10ms", engine="scripted")
def test_speed(llm):
    llm.run(Decode(batch=1, prompt_tokens=8, new_tokens=11))
"""
WRITER = """
import sys, msgspec
from pathlib import Path
from pytest_llmperf.core import record_json
from pytest_llmperf.history.store import open_for_session
model = record_json.decode(Path(sys.argv[3]).read_bytes())
with open_for_session(sys.argv[1], folder=Path(sys.argv[2]), busy_s=60) as store:
    for i in range(int(sys.argv[5])):
        store.add(msgspec.structs.replace(model, id=f"{sys.argv[4]}-{i}", session_id=sys.argv[4]))
        store.update_outcome(f"{sys.argv[4]}-{i}", "PASS")
    print(len(store.notices))
"""


def main() -> int:
    """Fill, time, write at once; say which bars are missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--each", type=int, default=1000, help="runs that each process writes")
    parser.add_argument(
        "--postgresql", action="store_true", help="on a PostgreSQL server that is started for it"
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    rows = rows_of(options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "store.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    (options.out / "store.md").write_text(markdown(rows), encoding="utf-8")
    return 0 if all(row["met"] for row in rows) else 1


def rows_of(options: argparse.Namespace) -> list[dict[str, object]]:
    """Fill stores in a temporary folder and measure them."""
    with (
        tempfile.TemporaryDirectory(prefix="llmperf-store-") as name,
        _urls(Path(name), options.postgresql) as url,
    ):
        folder = Path(name)
        model = measured(folder)
        return [
            *timings(url, folder, model, options.runs),
            together(url("together"), folder, model, options.processes, options.each),
        ]


def markdown(rows: list[dict[str, object]]) -> str:
    """Return a table of all rows."""
    head = ["| what | seen | bar | met |", "| --- | --- | --- | --- |"]
    cells = [(row["what"], row["seen"], row["bar"], "yes" if row["met"] else "no") for row in rows]
    return "\n".join([*head, *(f"| {' | '.join(map(str, texts))} |" for texts in cells), ""])


def measured(folder: Path) -> Record:
    """A real record of a scripted run."""
    (folder / "test_it.py").write_text(TEST, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--llmperf-json=out.jsonl",
        "--llmperf-store=none",
    ]
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        capture_output=True,
        env=os.environ | {"LLMPERF_CACHE": str(folder / "cache")},
    )
    return record_json.decode((folder / "out.jsonl").read_bytes().splitlines()[-1])


def timings(
    url: Callable[[str], str], folder: Path, model: Record, runs: int
) -> Iterator[dict[str, object]]:
    """The small store first, then the large one."""
    small, large = url("small"), url("large")
    fill(small, folder, model, SERIES)
    began = time.perf_counter()
    fill(large, folder, model, runs)
    print(f"filled {runs} runs in {time.perf_counter() - began:.0f} s", flush=True)
    yield _gate_row(large, folder, model, runs)
    yield _history_row(large, folder, runs)
    yield _opening_row(small, large, folder, runs)


def _gate_row(url: str, folder: Path, model: Record, runs: int) -> dict[str, object]:
    gate_ms = _ms(lambda store: _decide(store, model), url, folder)
    title = f"one gate decision at {runs:,} runs"
    return _row(title, gate_ms, f"<= {GATE_MS} ms", met=gate_ms <= GATE_MS)


def _history_row(url: str, folder: Path, runs: int) -> dict[str, object]:
    history_ms = _command_ms(url, folder, f"test_{SERIES // 2}")
    title = f"`llmperf history` of one series at {runs:,} runs, past its start"
    return _row(title, history_ms, f"<= {HISTORY_MS} ms", met=history_ms <= HISTORY_MS)


def _opening_row(small: str, large: str, folder: Path, runs: int) -> dict[str, object]:
    small_ms, large_ms = _open_ms(small, folder), _open_ms(large, folder)
    return {
        "what": f"opening a session's store at {runs:,} runs",
        "seen": f"{large_ms:.1f} ms ({small_ms:.1f} ms at {SERIES:,})",
        "bar": "no growth (25 %)",
        "met": large_ms <= 1.25 * small_ms + 2,
    }


def fill(url: str, folder: Path, model: Record, runs: int) -> None:
    """Copies of the record over 1,000 series, a minute apart."""
    metrics = metric_rows(model, 0)
    marked = document(
        msgspec.structs.replace(
            model, samples={}, outcome="PASS", **{name: f"@{name}@" for name in CHANGED}
        )
    )
    with open_store(url, folder=folder) as store:
        for start in range(0, runs, BATCH):
            numbered = [(at + 1, copy(model, at)) for at in range(start, min(runs, start + BATCH))]
            # A million single transactions would take hours.
            with store._database.writing() as connection:  # noqa: SLF001
                connection.execute(
                    insert(RECORDS),
                    [record_row(record) | {"seq": seq} for seq, record in numbered],
                )
                connection.execute(
                    insert(METRICS),
                    [row | {"record_seq": seq} for seq, _ in numbered for row in metrics],
                )
                connection.execute(
                    insert(DOCUMENTS),
                    [{"record_seq": seq, "body": body(marked, record)} for seq, record in numbered],
                )


def body(marked: str, record: Record) -> str:
    """Return the document of a copy: the model's, with the copy's own texts at the marks."""
    text = marked
    for name in CHANGED:
        text = text.replace(f'"@{name}@"', f'"{getattr(record, name)}"')
    return text


def copy(model: Record, at: int) -> Record:
    """The record as run `at`: its series by turns, its time by the clock."""
    when = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(1_700_000_000 + 60 * at))
    test = f"test_it.py::test_{at % SERIES}"
    return msgspec.structs.replace(
        model,
        id=f"r{at}",
        test=test,
        session_id=f"s{at // SERIES}",
        created=when,
        outcome="PASS",
        samples={},
    )


def together(url: str, folder: Path, model: Record, processes: int, each: int) -> dict[str, object]:
    """Processes that write at the same time: every record is there once, with its outcome."""
    (folder / "model.json").write_bytes(record_json.encode(model))
    arguments = [sys.executable, "-c", WRITER, url, str(folder), str(folder / "model.json")]
    began = time.perf_counter()
    writers = [subprocess.Popen([*arguments, f"w{i}", str(each)]) for i in range(processes)]
    failed = [writer.wait() for writer in writers if writer.wait()]
    took = time.perf_counter() - began
    with open_store(url, folder=folder) as store:
        outcomes = [record.outcome for record in store.records()]
    n_expected = processes * each
    summary = (
        f"{len(outcomes)} of {n_expected} runs, {outcomes.count('PASS')} with their outcome, "
        f"{took:.0f} s"
    )
    print(summary, flush=True)
    met = not failed and len(outcomes) == outcomes.count("PASS") == n_expected
    return {
        "what": f"{processes} processes, {each} runs each, one store",
        "seen": summary,
        "bar": "nothing lost or doubled",
        "met": met,
    }


def _decide(store: Store, model: Record) -> None:
    """What the gate asks of the history for one metric of one run."""
    record = msgspec.structs.replace(
        model, id="new", session_id="new", test=f"test_it.py::test_{SERIES // 2}"
    )
    metric = next(metric for metric in record.metrics if metric.name == "throughput")
    sessions = accepted_sessions(store, Reviewed(), Question(record=record, metric=metric))
    assert sessions.accepted.n > 0, sessions.reason


def _ms(action: Callable[[Store], None], url: str, folder: Path) -> float:
    with open_store(url, folder=folder) as store:
        action(store)
        return statistics.median(_once(lambda: action(store)) for _ in range(20))


def _open_ms(url: str, folder: Path) -> float:
    return statistics.median(
        _once(lambda: open_store(url, folder=folder).close()) for _ in range(20)
    )


def _command_ms(url: str, folder: Path, test: str) -> float:
    """The command as a process, less the same command on an empty store."""
    open_store("sqlite:///empty.db", folder=folder).close()

    def run(store: str, *more: str) -> float:
        command = [sys.executable, "-m", "pytest_llmperf", "history", *more, "--store", store]
        return _once(
            lambda: subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        )

    empty, full = (
        statistics.median(run(*arguments) for _ in range(7))
        for arguments in (("sqlite:///empty.db",), (url, f"test_it.py::{test}"))
    )
    return full - empty


def _once(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - began)


def _row(what: str, ms: float, bar: str, *, met: bool) -> dict[str, object]:
    print(f"{what}: {ms:.1f} ms", flush=True)
    return {"what": what, "seen": f"{ms:.1f} ms", "bar": bar, "met": met}


@contextmanager
def _urls(folder: Path, postgresql: bool) -> Iterator[Callable[[str], str]]:
    if not postgresql:
        yield lambda name: f"sqlite:///{folder}/{name}.db"
        return
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.postgresql_server import binaries, running  # noqa: PLC0415 - only for this

    programs = binaries()
    if programs is None:
        raise SystemExit("PostgreSQL's server programs (initdb, pg_ctl) are not installed here")
    with running(programs) as server:
        known = {name: server.database() for name in ("small", "large", "together")}
        yield known.__getitem__


if __name__ == "__main__":
    raise SystemExit(main())
