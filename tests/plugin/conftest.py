"""Projects that use the plugin with a scripted engine: no torch, a virtual clock, answers known by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_project import HEADER

Run = Callable[..., pytest.RunResult]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Baselines and ceilings of a test are its own."""
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def project(pytester: pytest.Pytester) -> Callable[..., Path]:
    """`project(body, script=…)` writes test_it.py around a scripted model."""

    def write(body: str, *, script: str = "ttft=50ms,tpot=10ms") -> Path:
        return pytester.makepyfile(test_it=HEADER.format(script=script) + body)

    return write


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Run pytest in the project, in a process of its own."""

    def call(*args: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)

    return call


@pytest.fixture(params=["plain", "xdist"])
def run_both(request: pytest.FixtureRequest, run: Run) -> Run:
    """Run pytest in the project, plain and with two xdist workers."""

    def call(*args: str) -> pytest.RunResult:
        return run(*(["-n", "2"] if request.param == "xdist" else []), *args)

    return call


@pytest.fixture
def lines(pytester: pytest.Pytester) -> Callable[[], list[dict]]:
    """The newest line of each record in out.jsonl, in order of their first."""

    def read() -> list[dict]:
        found: dict[str, dict] = {}
        for line in (pytester.path / "out.jsonl").read_text().splitlines():
            row = json.loads(line)
            found[row["id"]] = row
        return list(found.values())

    return read
