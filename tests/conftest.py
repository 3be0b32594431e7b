"""What all tests share: pytester, and the GPU tests that this machine cannot run."""

from __future__ import annotations

import signal

import pytest

from pytest_llmperf.session.devices import gpu_count

pytest_plugins = ["pytester"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A background job of a shell ignores Ctrl-C, and so would the children that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark GPU tests as skipped where there is no GPU."""
    if gpu_count():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"needs a CUDA device, NVML sees none: {item.nodeid}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name every GPU test that was skipped, so that a green run never hides them."""
    skipped = [r.nodeid for r in terminalreporter.stats.get("skipped", []) if "gpu" in getattr(r, "keywords", ())]
    if skipped:
        terminalreporter.section(f"{len(skipped)} GPU tests skipped: no CUDA device here")
        for nodeid in skipped:
            terminalreporter.write_line(nodeid)
