"""Wall time of the precision example suite with the models cached."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from pairs import Finding

ROOT = Path(__file__).parents[1]
BAR_S = 360.0


def suite(device: str) -> list[Finding]:
    """One run of the suite. A failing suite is an error: its time means nothing."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "example_suites/precision",
        f"--llmperf-device={device}",
        "--llmperf-store=none",
        "-q",
    ]
    start_s = time.monotonic()
    process = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    took_s = time.monotonic() - start_s
    if process.returncode:
        raise SystemExit(
            f"the example suite failed:\n{process.stdout[-4000:]}\n{process.stderr[-2000:]}"
        )
    closing = process.stdout.strip().splitlines()[-1].strip("= ")
    return [
        Finding(
            name="precision example suite",
            value=took_s,
            low=None,
            high=None,
            unit="s",
            bar=f"<= {BAR_S:g} s on 2 cores",
            met="yes" if took_s <= BAR_S else "no",
            n=1,
            detail=closing,
        ),
    ]
