"""Write the compiled modules that a session loads, once: the tests start a thousand sessions.

Where Python is told to write none (PYTHONDONTWRITEBYTECODE, as in many containers), each session
compiles this package and rewrites the assertions of all plugins anew, which makes it half as fast.
What is written here is read all the same.
"""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest_llmperf

TEST = """
import pytest
from pytest_llmperf import Decode

@pytest.mark.llmperf(model="scripted:ttft=50ms,tpot=10ms", engine="scripted")
def test_speed(llm):
    llm.run(Decode(batch=1, prompt_tokens=8, new_tokens=11))
"""


def main() -> None:
    """The package, and one scripted session, plain and under pytest-xdist."""
    compileall.compile_dir(Path(pytest_llmperf.__file__).parent, quiet=1)
    environ = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test_it.py").write_text(TEST, encoding="utf-8")
        for more in ((), ("-n1",)):
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "--llmperf-html=report.html",
                *more,
            ]
            subprocess.run(command, cwd=folder, check=True, env=environ, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
