"""What an installed plugin adds to a pytest session that has no llmperf test."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from pairs import Finding, finding, interleave

BAR_MS = 15.0


def collect_ms(folder: Path, *arguments: str) -> float:
    """Wall time of `pytest --collect-only` in a process of its own, in milliseconds."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments]
    start_ns = time.perf_counter_ns()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (time.perf_counter_ns() - start_ns) / 1e6


def startup(n: int) -> list[Finding]:
    """Pairs of collections with and without the plugin."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        (folder / "test_nothing.py").write_text("def test_nothing():\n    pass\n", encoding="utf-8")
        pairs = interleave(partial(collect_ms, folder), partial(collect_ms, folder, "-p", "no:llmperf"), n, warm_up=2)
    added = [with_plugin - without for with_plugin, without in pairs]
    alone = sorted(without for _, without in pairs)[len(pairs) // 2]
    detail = f"pytest --collect-only alone: {alone:.0f} ms"
    return [
        finding(
            "added to pytest --collect-only", added, unit="ms", bar=f"<= {BAR_MS:g} ms", met=lambda v: v <= BAR_MS, detail=detail
        )
    ]
