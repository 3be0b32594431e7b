"""Projects that use the plugin with a scripted engine.

There is no torch, the clock is virtual, and answers are known by hand.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import preloaded
from support.repository import TESTS, Repository
from support.scripted_project import HEADER
from support.stored_sessions import TWO, earlier, of_project
from support.written_records import VALIDATOR, written

from pytest_llmperf.core import record_json
from pytest_llmperf.core.record import Record
from pytest_llmperf.history.store import Store, open_store

preloaded.import_all()

Run = Callable[..., pytest.RunResult]
PLAIN = ("-p", "no:cacheprovider")
IN_PROCESS = ("--llmperf-in-process",)
OTHERS = ("-p", "no:hypothesispytest", "-p", "no:anyio")
"""Plugins of others that take longer to import than a session of ours takes."""


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
def run(request: pytest.FixtureRequest, pytester: pytest.Pytester) -> Run:
    """Run pytest in the project: inside of this process, or under xdist in processes of its own.

    Scripted models are loaded where the session runs. A test marked `own_process` runs its sessions
    in processes of their own, with the plugins of others; one marked `workers` has its models in
    workers too, as users have theirs.
    """

    def call(*args: str) -> pytest.RunResult:
        if request.node.get_closest_marker("workers"):
            return pytester.runpytest_subprocess(*PLAIN, *args)
        if request.node.get_closest_marker("own_process"):
            return pytester.runpytest_subprocess(*PLAIN, *IN_PROCESS, *args)
        if "-n" in args:
            return pytester.runpytest_subprocess(*PLAIN, *OTHERS, *IN_PROCESS, *args)
        with warnings.catch_warnings():
            warnings.resetwarnings()  # those of our own tests are errors
            return pytester.runpytest_inprocess(*PLAIN, *OTHERS, *IN_PROCESS, *args)

    return call


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave most halves under pytest-xdist to the night.

    Each starts three processes, and nearly all go the same ways.
    """
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        by_day = item.get_closest_marker("by_day_with_xdist")
        if params.get("run_both") == "xdist" and not by_day:
            item.add_marker(pytest.mark.nightly)


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


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> dict[str, Record]:
    """One real record of each test of TWO, by the test's name."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "test_it.py").write_text(HEADER.format(script="ttft=50ms,tpot=10ms") + TWO)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--rootdir=.",
        "--llmperf-json=out.jsonl",
    ]
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        capture_output=True,
        env=os.environ | {"LLMPERF_CACHE": str(folder / "cache")},
    )
    records = map(record_json.decode, (folder / "out.jsonl").read_text().splitlines())
    return {record.test.partition("::")[2]: record for record in records}


@pytest.fixture
def opened(pytester) -> Callable[[], Store]:
    """The project's store."""
    return lambda: open_store("sqlite:///.llmperf/history.db", folder=pytester.path)


@pytest.fixture
def sessions(opened, template, pytester) -> Callable[..., None]:
    """`sessions(n, spread=…, change=…)` stores n sessions of both tests, an hour apart.

    Their speeds spread by that share.

    What is in the store already is copied as well.
    """

    def put(
        n: int, *, spread: float = 0.005, change: Callable[[Record], Record] = lambda record: record
    ) -> None:
        draw = random.Random(0)
        with opened() as store:
            models = [*template.values(), *store.records()]
            for at in range(n):
                for record in models:
                    store.add(
                        change(
                            earlier(
                                of_project(record, pytester.path),
                                at + 1,
                                math.exp(spread * draw.gauss(0, 1)),
                            )
                        )
                    )

    return put


@pytest.fixture(autouse=True)
def every_record_is_of_the_schema(pytester: pytest.Pytester) -> Iterator[None]:
    """What a test leaves in files and in its store validates against the published schema."""
    yield
    for line in written(pytester.path):
        VALIDATOR.validate(json.loads(line))


@pytest.fixture
def repo(pytester, monkeypatch) -> Repository:
    """The project at 10 ms a token, committed; its worker's leases are its own."""
    monkeypatch.setenv("TMPDIR", str(pytester.path.parent))
    repository = Repository(pytester.path)
    repository.speed("10ms")
    repository.commit("fast", **{"test_it.py": TESTS})
    return repository
