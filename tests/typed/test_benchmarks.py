"""Programs that CI does not run use names that exist, and call them with what they take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


SETTINGS = """
[mypy]
check_untyped_defs = true
ignore_missing_imports = true
follow_imports = silent
implicit_reexport = true
strict_optional = false
disable_error_code = union-attr, arg-type, list-item, return-value, func-returns-value, operator,
    assignment, misc, var-annotated
"""


def faults(tmp_path, *files):
    """Return mypy's lines on names, attributes and calls in these files."""
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    command = ("-m", "mypy", f"--config-file={tmp_path}/mypy.ini", "--no-error-summary")
    done = subprocess.run(
        [sys.executable, *command, f"--cache-dir={tmp_path}/cache", *map(str, files)],
        cwd=ROOT,
        env=os.environ | {"MYPYPATH": "tests:benchmarks:tools"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    return [line for line in done.stdout.splitlines() if ": error:" in line]


@pytest.mark.nightly
def test_benchmarks_and_tools_call_what_exists(tmp_path):
    """They once went on calling a method that had been renamed, until somebody ran them."""
    stale = tmp_path / "stale.py"
    stale.write_text("import simulated\n\nsimulated.gone()\nsimulated.gated([1.0])\n")
    files = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("tools/*.py"), stale]
    lines = faults(tmp_path, *files)
    assert [line.partition(" ")[0] for line in lines] == [f"{stale}:3:", f"{stale}:4:"], lines
