"""A project of scripted models whose report has every section.

Its names and texts try to be more than text.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
from support.html_pages import session_value

from pytest_llmperf.core import record_json
from pytest_llmperf.core.record import Record
from pytest_llmperf.report.html import Content, build
from pytest_llmperf.report.html.content import History, Level, Step, Unmeasured

HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"></script>"
    "<script>document.title='owned'</script>\u202e\x1b[31m"
)
TESTS = """
import pytest
from pytest_llmperf import Decode, PromptSet

HOSTILE = {hostile!r}
WORK = Decode(batch=1, prompt_tokens=8, new_tokens=11)
pytestmark = pytest.mark.llmperf(
    model="scripted:ttft=50ms,tpot=10ms,noise=0.02,bf16/tpot=7ms", engine="scripted"
)

@pytest.mark.parametrize("llm", ["bf16"], indirect=True)
def test_pays(llm, baseline):
    ours, ref = llm.compare(baseline, WORK)
    assert llm.agreement(baseline).top1 >= 0.5
    assert ours.throughput >= 9 * ref.throughput

@pytest.mark.skip(reason=HOSTILE)
def test_skipped(llm):
    llm.run(WORK)
"""


def records(folder: Path) -> list[Record]:
    """What one session of the project leaves; its own report is in report.html."""
    (folder / "test_it.py").write_text(TESTS.format(hostile=HOSTILE), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir=.",
        "--llmperf-json=out.jsonl",
    ]
    session = subprocess.run(
        [*command, "--llmperf-html=report.html"],
        cwd=folder,
        env=os.environ | {"LLMPERF_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "1 failed, 1 skipped" in session.stdout, session.stdout
    session_records = map(
        record_json.decode, (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()
    )
    return list({record.id: record for record in session_records}.values())


def everything(session_records: list[Record]) -> Content:
    """Return a report with every kind of figure.

    It has the session's records, one of two ranks, one side by side, and a history.
    """
    bf16 = next(
        record
        for record in session_records
        if record.strategy == "bf16" and record.workload["type"] != "agreement"
    )
    pairs = [[80.0, 90.0 + at] for at in range(8)]
    comparison = {
        "outcome": "PASS",
        "limit": 0.03,
        "unit": "tok/s",
        "ratio": [1.15, 1.1, 1.2],
        "pairs": pairs,
    }
    against = msgspec.structs.replace(
        bf16,
        id="against",
        test=HOSTILE,
        strategy="fp16",
        extra={"against": {"base": HOSTILE, "metrics": {"throughput": comparison}}},
    )
    ranks = [
        {"weights": 4 * 10**9, "kv_cache": 10**8, "peak": (5 + rank) * 10**9} for rank in range(2)
    ]
    split = msgspec.structs.replace(
        bf16, id="split", strategy="bf16+tp2", extra={"memory_ranks": ranks}, outcome="PASS"
    )
    return Content(
        created="2026-11-23T12:00:00+00:00",
        scope="Everything at once",
        store="sqlite:///history.db",
        records=(*session_records, against, split),
        unmeasured=(Unmeasured(test=HOSTILE, outcome="SKIPPED", reason=HOSTILE),),
        histories=(history(bf16, 60),),
        places={record.environment_key: record.environment.facts for record in session_records}
        | {"before": {"device": HOSTILE}},
        comparable=("device",),
    )


def history(record: Record, n: int) -> History:
    """A series that lost a tenth half-way, in two environments, with an accepted change."""
    first = datetime.fromisoformat("2026-09-01T00:00:00+00:00")
    sessions = tuple(
        session_value(
            (first + timedelta(days=day)).isoformat(),
            value=100.0 if day < n // 2 else 90.0,
            outcome="FAIL" if day == n // 2 else "PASS",
            environment_key="before" if day < 5 else record.environment_key,
        )
        for day in range(n)
    )
    return History(
        key="k",
        test=HOSTILE,
        label="",
        workload=record.workload_text,
        strategy=record.strategy,
        model=record.model,
        metric="throughput",
        unit="tok/s",
        sessions=sessions,
        steps=(Step(at=sessions[n // 2].created, before=100.0, after=90.0, accepted=False),),
        levels=(Level(at=sessions[10].created, who="ann", why=HOSTILE),),
    )


def write(content: Content, path: Path) -> Path:
    """The page as a file."""
    path.write_text(build(content), encoding="utf-8")
    return path
