"""Tests that use pytest-benchmark's fixture under the llmperf marker: its rounds go into our history, and are gated there.

The fixture is looked at, never imported: without pytest-benchmark nothing here does anything.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pytest_llmperf.core.benchmark import TIME
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts.judge import Finding, Outcome
from pytest_llmperf.engines.inprocess import CallableEngine
from pytest_llmperf.session.handle import HostChannel
from pytest_llmperf.worker.host import Host
from pytest_llmperf.workers.pool import OpenModel

if TYPE_CHECKING:
    from pytest_llmperf.session.declare import Declaration
    from pytest_llmperf.session.session import LlmperfSession

_PASSED_ON = (
    "min-",
    "max-",
    "warmup",
    "disable-gc",
    "timer",
    "calibration",
    "precision",
    "confidence",
)


def judge_benchmark(core: LlmperfSession, item: pytest.Item, declared: Declaration) -> bool:
    """Record what the test's `benchmark` fixture measured, and gate it.

    Returns whether the test has that fixture.

    A fixture that measured nothing (pytest-benchmark switches itself off under pytest-xdist) is not
    comparable.

    Raises Regression as `Gate.judge`.
    """
    fixture = getattr(item, "funcargs", {}).get("benchmark")
    if (
        fixture is None
        or not type(fixture).__module__.startswith("pytest_benchmark")
        or core.settings.disable
    ):
        return False
    rounds_s = tuple(fixture.stats.stats.data) if fixture.stats is not None else ()
    if not rounds_s:
        if core.gate is not None:
            core.gate.keep([_not_measured(fixture, strict=core.settings.require_accepted)])
        return True
    record = core.recorder.timed(
        _opened(core, declared), rounds_s, iterations=fixture.stats.iterations
    )
    if core.gate is not None:
        core.gate.judge([record], declared.gate, lambda: [_again(core, item, record)])
    return True


def _not_measured(fixture: Any, *, strict: bool) -> Finding:
    why = (
        "pytest-benchmark is off here (pytest-xdist, or --benchmark-disable)"
        if fixture.disabled
        else "the fixture was not called"
    )
    return Finding(
        outcome=Outcome.NOT_COMPARABLE,
        text=f"the time of the benchmark was not measured: {why}",
        detail="nothing was recorded",
        left="the benchmark",
        right="history",
        strict=strict,
    )


def _opened(core: LlmperfSession, declared: Declaration) -> OpenModel:
    """The test's own process, as if it were a loaded model."""
    name = declared.model or ""
    facts = _device_facts()
    ref = ModelRef(name=name, kind="factory", location=f"benchmark:{name}")
    plan = LoadPlan(
        model=ref, engine="pytest-benchmark", device=str(facts["device"]), strategy="as-is"
    )
    engine = CallableEngine(lambda: None, 1)
    seen = engine.open(plan).opened()
    versions = {"python": platform.python_version()}
    opened = msgspec.structs.replace(
        seen, device_facts=facts, content_hash=f"benchmark:{name}", versions=versions
    )
    return OpenModel(
        plan,
        HostChannel(Host(find_engine=lambda _plan: engine)),
        opened,
        (),
        core.settings.timeout_s,
        core.host,
    )


def _device_facts() -> dict[str, Any]:
    """The device that the test's own code uses: CUDA where torch has started it.

    torch is looked up, never imported.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {"device": "cpu"}
    return {
        "device": "cuda",
        "device_name": torch.cuda.get_device_name(),
        "device_count": torch.cuda.device_count(),
    }


def _again(core: LlmperfSession, item: pytest.Item, first: Record) -> Record:
    """The same test in a fresh process; what it measured goes into this session.

    Without a value where it did not.
    """
    with tempfile.TemporaryDirectory(prefix="llmperf-again-") as folder:
        lines = Path(folder) / "again.jsonl"
        core.progress("measuring again", item.name, None)
        done = subprocess.run(  # noqa: S603 - this interpreter, this test
            _command(item, lines),
            cwd=item.config.rootpath,
            env=_environment(os.environ),
            capture_output=True,
            timeout=core.settings.timeout_s,
            check=False,
        )
        found = [
            record for record in _records(lines) if record.test == item.nodeid and _has_time(record)
        ]
    if not found:
        tail = done.stdout.decode("utf-8", "replace").strip().splitlines()[-1:]
        core.note(
            f"{item.nodeid}: could not be measured again in a process of its own: {''.join(tail)}"
        )
        return msgspec.structs.replace(first, metrics=())
    again = msgspec.structs.replace(
        found[-1], session_id=first.session_id, extra=found[-1].extra | {"attempt": 2}
    )
    return core.recorder.keep(again)


def _command(item: pytest.Item, lines: Path) -> list[str]:
    config = item.config
    kept = [
        arg
        for arg in config.invocation_params.args
        if str(arg).startswith(tuple(f"--benchmark-{name}" for name in _PASSED_ON))
    ]
    ini = ["-c", str(config.inipath)] if config.inipath is not None else []
    plain = ["-n0"] if config.pluginmanager.hasplugin("xdist") else []
    ours = ["--llmperf-gate=off", "--llmperf-store=none", f"--llmperf-json={lines}"]
    head = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--rootdir={config.rootpath}",
    ]
    return [*head, *ini, *plain, *ours, *map(str, kept), item.nodeid]


def _environment(here: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in here.items()
        if not name.startswith(("PYTEST_XDIST", "PYTEST_CURRENT"))
    }


def _records(lines: Path) -> list[Record]:
    from pytest_llmperf.report.json_lines import read  # noqa: PLC0415

    return [line for line in read(lines) if isinstance(line, Record)] if lines.is_file() else []


def _has_time(record: Record) -> bool:
    return any(metric.name == TIME.name for metric in record.metrics)
