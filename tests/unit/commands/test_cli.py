"""The `llmperf` command as a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "pytest_llmperf"]


def test_this_machine_as_a_process(project):
    """Plain text, no escape sequences, no torch; a terminal without UTF-8 is no reason to fail."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "LLMPERF_CACHE": str(project / "cache"),
        "PYTHONIOENCODING": "ascii",
        "HOME": str(project),
    }
    done = subprocess.run(
        [*COMMAND, "doctor"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        timeout=60,
    )
    assert "\x1b" not in done.stdout
    assert "engine" in done.stdout
    assert done.stderr == ""
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["history", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    """So that it is quick."""
    heavy = "('torch', 'sqlalchemy', 'alembic', 'psutil', 'pynvml', 'pytest', 'transformers')"
    code = (
        "import sys, click\nfrom pytest_llmperf.commands.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"
