"""Tests that use pytest-benchmark's fixture under the llmperf marker.

Its rounds go into our history, and are gated there.

The fixture is looked at, never imported: without pytest-benchmark nothing here does anything.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pytest_llmperf.core.benchmark import TIME
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts.judge import Finding, Outcome
from pytest_llmperf.engines.inprocess import CallableEngine
from pytest_llmperf.worker.host import Host
from pytest_llmperf.workers.in_process import InProcess
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

    Returns whether the test has that fixture. A fixture that measured nothing (pytest-benchmark
    switches itself off under pytest-xdist) is not comparable.

    Raises Regression as `Gate.judge`.
    """
    fixture: Any = getattr(item, "funcargs", {}).get("benchmark")
    if core.settings.disable or not _is_benchmark(fixture):
        return False
    rounds_s = tuple(fixture.stats.stats.data) if fixture.stats is not None else ()
    if not rounds_s:
        if core.gate is not None:
            core.gate.keep([_not_measured(fixture, strict=core.settings.require_accepted)])
        return True
    model = _own_process(core, declared)
    record = core.recorder.timed(model, rounds_s, iterations=fixture.stats.iterations)
    if core.gate is not None:
        attempts = count(2)
        core.gate.judge(
            [record],
            declared.gate,
            lambda: [_measured_again(core, item, record, next(attempts))],
        )
    return True


def _is_benchmark(fixture: object) -> bool:
    return fixture is not None and type(fixture).__module__.startswith("pytest_benchmark")


def _not_measured(fixture: Any, *, strict: bool) -> Finding:
    why = "the fixture was not called"
    if fixture.disabled:
        why = "pytest-benchmark is off here (pytest-xdist, or --benchmark-disable)"
    return Finding(
        outcome=Outcome.NOT_COMPARABLE,
        text=f"the time of the benchmark was not measured: {why}",
        detail="nothing was recorded",
        left="the benchmark",
        right="history",
        strict=strict,
    )


def _own_process(core: LlmperfSession, declared: Declaration) -> OpenModel:
    """Return the test's own process, as if it were a loaded model."""
    name = declared.model or ""
    facts = _device_facts()
    plan = LoadPlan(
        model=ModelRef(name=name, kind="factory", location=f"benchmark:{name}"),
        engine="pytest-benchmark",
        device=str(facts["device"]),
        strategy="as-is",
    )
    engine = CallableEngine(lambda: None, 1)
    opened = msgspec.structs.replace(
        engine.open(plan).opened(),
        device_facts=facts,
        content_hash=f"benchmark:{name}",
        versions={"python": platform.python_version()},
    )
    return OpenModel(
        plan,
        InProcess(Host(find_engine=lambda _plan: engine)),
        opened,
        (),
        core.settings.timeout_s,
        core.host,
    )


def _device_facts() -> dict[str, Any]:
    """Return the device that the test's own code uses: CUDA where torch has started it.

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


def _measured_again(core: LlmperfSession, item: pytest.Item, first: Record, attempt: int) -> Record:
    """Run the same test in a fresh process; what it measured goes into this session.

    Where it measured nothing, return the first record without a value.
    """
    core.progress("measuring again", item.name, None)
    records, output = _run_alone(core, item)
    if not records:
        last_line = output.strip().splitlines()[-1:]
        core.note(
            f"{item.nodeid}: could not be measured again in a process of its own: "
            f"{''.join(last_line)}"
        )
        return msgspec.structs.replace(first, metrics=())
    newest = records[-1]
    record = msgspec.structs.replace(
        newest, session_id=first.session_id, extra=newest.extra | {"attempt": attempt}
    )
    return core.recorder.keep(record)


def _run_alone(core: LlmperfSession, item: pytest.Item) -> tuple[list[Record], str]:
    """Run the test in a process of its own. Returns its records with a time, and its output."""
    with tempfile.TemporaryDirectory(prefix="llmperf-again-") as folder:
        lines = Path(folder) / "again.jsonl"
        process = subprocess.run(  # noqa: S603 - this interpreter, this test
            _command(item, lines),
            cwd=item.config.rootpath,
            env=_environment(os.environ),
            capture_output=True,
            timeout=core.settings.timeout_s,
            check=False,
        )
        records = _records(lines)
    timed = [record for record in records if record.test == item.nodeid and _has_time(record)]
    return timed, process.stdout.decode("utf-8", "replace")


def _command(item: pytest.Item, lines: Path) -> list[str]:
    """Return the command that runs this one test, ungated, into a file of JSON lines."""
    config = item.config
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    words += [f"--rootdir={config.rootpath}"]
    words += ["-c", str(config.inipath)] if config.inipath is not None else []
    words += ["-n0"] if config.pluginmanager.hasplugin("xdist") else []
    words += ["--llmperf-gate=off", "--llmperf-store=none", f"--llmperf-json={lines}"]
    words += _benchmark_options(config)
    return [*words, item.nodeid]


def _benchmark_options(config: pytest.Config) -> list[str]:
    """Return pytest-benchmark's own options that were given on the command line."""
    prefixes = tuple(f"--benchmark-{name}" for name in _PASSED_ON)
    arguments = map(str, config.invocation_params.args)
    return [argument for argument in arguments if argument.startswith(prefixes)]


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what tells pytest where it runs."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(("PYTEST_XDIST", "PYTEST_CURRENT"))
    }


def _records(lines: Path) -> list[Record]:
    from pytest_llmperf.report.json_lines import read  # noqa: PLC0415

    return [line for line in read(lines) if isinstance(line, Record)] if lines.is_file() else []


def _has_time(record: Record) -> bool:
    return any(metric.name == TIME.name for metric in record.metrics)
