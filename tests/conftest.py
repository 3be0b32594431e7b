"""What all tests share: pytester, and the GPU tests that this machine cannot run."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import signal
import sys

import pytest
from hypothesis import HealthCheck, settings

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.devices.placement import gpu_count
from pytest_llmperf.wire.commands import Open
from pytest_llmperf.workers.group import WorkerGroup
from pytest_llmperf.workers.ranks import Ranks

pytest_plugins = ["pytester"]

# A test is never a race against a clock, on a busy machine neither.
settings.register_profile(
    "no-clock",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=200 if "LLMPERF_NIGHTLY" in os.environ else 40,
)
settings.load_profile("no-clock")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A background job of a shell ignores Ctrl-C, and so would the children that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of all later garbage collections.

    Each looks at some hundred thousand objects otherwise, for half a second.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no GPU, and those of the night by day."""
    no_gpu = not gpu_count()
    by_day = "LLMPERF_NIGHTLY" not in os.environ
    for item in items:
        if no_gpu and item.get_closest_marker("gpu"):
            reason = f"needs a CUDA device, NVML sees none: {item.nodeid}"
            item.add_marker(pytest.mark.skip(reason=reason))
        if by_day and item.get_closest_marker("nightly"):
            reason = f"takes long on two cores, make nightly runs it: {item.nodeid}"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _no_xdist_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that a test starts are no workers of the pytest-xdist that runs the test."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def vllm_python() -> str:
    """Return an interpreter that has vLLM and this package: LLMPERF_VLLM_PYTHON, or this one."""
    named = os.environ.get("LLMPERF_VLLM_PYTHON")
    if named is None and importlib.util.find_spec("vllm") is None:
        pytest.skip("no vLLM here, and LLMPERF_VLLM_PYTHON names no interpreter that has it")
    return named or sys.executable


@pytest.fixture
def open_worker(request, tmp_path):
    """Return a function: `with open_worker(plan) as (channel, opened)`.

    It opens the plan's model in workers of its engine's interpreter.
    """

    @contextlib.contextmanager
    def opened(plan: LoadPlan, deadline_s: float = 300):
        python = request.getfixturevalue("vllm_python") if plan.engine == "vllm" else sys.executable
        group = WorkerGroup.start(
            ranks=plan.ranks,
            python=python,
            log_dir=tmp_path / "logs",
            name=f"{plan.engine}-{plan.strategy}",
        )
        channel = Ranks(group, plan)
        try:
            yield channel, channel.call(Open(plan=plan), deadline_s=deadline_s).facts
        finally:
            channel.close()

    return opened


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name every GPU test that was skipped, so that a green run never hides them."""
    skipped = [
        r.nodeid
        for r in terminalreporter.stats.get("skipped", [])
        if "gpu" in getattr(r, "keywords", ())
    ]
    if skipped:
        terminalreporter.section(f"{len(skipped)} GPU tests skipped: no CUDA device here")
        for nodeid in skipped:
            terminalreporter.write_line(nodeid)
