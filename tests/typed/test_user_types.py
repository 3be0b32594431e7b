"""The annotations as a user sees them.

A strict suite has no fault and no Any; a wrong one has a fault in each wrong line.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WRONG = {
    n
    for n, line in enumerate((HERE / "wrong.txt").read_text().splitlines(), start=1)
    if "# wrong" in line
}


@pytest.fixture
def user(tmp_path):
    """Both files in a folder that knows nothing of this repository's settings."""
    shutil.copy(HERE / "suite.py", tmp_path)
    shutil.copy(HERE / "wrong.txt", tmp_path / "wrong.py")
    return tmp_path


def test_mypy_strict_sees_no_fault_in_a_users_suite_and_every_wrong_line(user):
    """With --disallow-any-expr nothing that a test touches is an Any, so nothing goes unchecked."""
    command = [
        "-m",
        "mypy",
        "--strict",
        "--disallow-any-expr",
        "--no-error-summary",
        f"--cache-dir={user}/cache",
    ]
    done = subprocess.run(
        [sys.executable, *command, "suite.py", "wrong.py"],
        cwd=user,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    faults = re.findall(r"^(\w+\.py):(\d+): error", done.stdout, re.MULTILINE)
    assert {int(line) for file, line in faults if file == "wrong.py"} == WRONG, (
        done.stdout + done.stderr
    )
    assert [fault for fault in faults if fault[0] == "suite.py"] == [], done.stdout


@pytest.mark.skipif(
    find_spec("pyright") is None,
    reason="pyright is not installed: pip install 'pytest-llmperf[dev]'",
)
def test_pyright_strict_sees_the_same(user):
    """The other checker, which editors use."""
    settings = {"typeCheckingMode": "strict", "include": ["suite.py", "wrong.py"]}
    (user / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [
        sys.executable,
        "-m",
        "pyright",
        "--outputjson",
        "--pythonpath",
        sys.executable,
        "-p",
        ".",
    ]
    done = subprocess.run(
        command, cwd=user, capture_output=True, text=True, check=False, timeout=300
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    faults = [
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1, each["message"])
        for each in found
    ]
    assert {line for file, line, _ in faults if file == "wrong.py"} == WRONG, faults
    assert [fault for fault in faults if fault[0] == "suite.py"] == []


def test_every_public_name_can_be_imported_and_only_those():
    """Names are imported on first use: the table, `__all__` and what type checkers see agree."""
    import pytest_llmperf

    for name in pytest_llmperf.__all__:
        assert getattr(pytest_llmperf, name).__name__ == name
    assert set(pytest_llmperf._WHERE) == set(pytest_llmperf.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Modell'"):
        _ = pytest_llmperf.Modell
