"""Projects that `torture.py` runs: tests of scripted models that lease the device as real ones do.

An engine that is not built in occupies its device; this one is the scripted engine under another
name, found by an entry point in a folder of its own. The witness of a project is its conftest: it
notes each run that a report carried when that report was there, and nothing else of ours.
"""

from __future__ import annotations

from pathlib import Path

ENGINE = "leasing"
N_TESTS = 6
WITNESS = "witness.txt"
CONFTEST = """
import os
from datetime import datetime, timedelta
from pathlib import Path

import pytest

AHEAD = timedelta(days=float(os.environ.get("TORTURE_DAYS_AHEAD", "0")))
if AHEAD:
    import pytest_llmperf.session.recorder as recorder

    class Ahead(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + AHEAD

    recorder.datetime = Ahead

def note(line):
    file = os.open(Path(__file__).with_name("witness.txt"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode() + b"\\n")
    os.close(file)

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" and "TORTURE_UNSEEN" not in os.environ:
        for record in getattr(report, "llmperf", {}).get("records", ()):
            note(f"{record['id']} {report.outcome}" if isinstance(record, dict)
                 else f"{record.id} {report.outcome}")
    return report
"""
_HEAD = """
import time
import pytest
from pytest_llmperf import Decode, Serve

WORK = Decode(batch=1, prompt_tokens=8, new_tokens=11)
"""
_SCRIPTED = (
    _HEAD
    + """
@pytest.mark.parametrize("n", range({n}))
@pytest.mark.llmperf(
    model="scripted:ttft=50ms,tpot={tpot},noise=0.003{fault}", engine="{engine}"{strategy}
)
def test_speed(llm, n):
    time.sleep({sleep})
    assert llm.run(WORK).throughput > 10
    time.sleep({sleep})
"""
)
_SERVER = (
    _HEAD
    + """
OPTIONS = {{"command": {command!r}, "name": "tiny", "stop_timeout": 0.5}}

@pytest.mark.parametrize("n", range({n}))
@pytest.mark.llmperf(model="arch:tiny-llama", engine="server", options=OPTIONS, device="cpu")
def test_speed(llm, n):
    load = {{"concurrency": 1, "requests": 4, "prompt_tokens": 4, "max_new_tokens": 3}}
    run = llm.run(Serve(prefix_cache=True, **load))
    assert run.n_requests == 4
"""
)


def scripted(
    *, tpot: str = "10ms", fault: str = "", strategy: str = "", sleep: float = 0.05
) -> str:
    """Return a test file of a scripted model."""
    return _SCRIPTED.format(
        n=N_TESTS,
        tpot=tpot,
        fault=f",fault={fault}" if fault else "",
        engine=ENGINE,
        strategy=f', strategy="{strategy}"' if strategy else "",
        sleep=sleep,
    )


def server(command: str) -> str:
    """Return a test file of a server that a test starts."""
    return _SERVER.format(n=2, command=command)


def write_engine(folder: Path) -> None:
    """Write the engine, and the entry point under which it is found."""
    (folder / "leasing_engine.py").write_text(
        "from dataclasses import replace\n"
        "from pytest_llmperf.engines import TABLE\n"
        f'ROW = replace(TABLE["scripted"], name="{ENGINE}")\n',
        encoding="utf-8",
    )
    info = folder / "leasing_engine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leasing-engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[pytest_llmperf.engines]\n{ENGINE} = leasing_engine:ROW\n"
    )


def write_project(folder: Path, text: str) -> None:
    """Write a project whose tests are `text`."""
    folder.mkdir(exist_ok=True)
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (folder / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    (folder / "test_it.py").write_text(text, encoding="utf-8")
