"""--llmperf-against on a GPU: one device for both versions, and the real engine.

The autocorrelation of its pairs is printed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from soak_projects import SLOW_MODEL

pytestmark = pytest.mark.gpu

TESTS = """
import pytest
from pytest_llmperf import Decode


@pytest.mark.llmperf(model="{model}", strategy="bf16+static-cache+compile", device="cuda")
def test_decode(llm):
    llm.run(Decode(batch=1, prompt_tokens={tokens}, new_tokens={tokens}))
"""


def project(folder: Path, body: str, **modules: str) -> None:
    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-c", "user.email=a@example.org", "-c", "user.name=A", *words],
            cwd=folder,
            check=True,
        )

    git("init", "-q")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    for name, text in {"test_it": body, **modules}.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    git("add", "-A")
    git("commit", "-q", "-m", "base")


def compared(folder: Path, *options: str) -> tuple[int, dict, str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--llmperf-against=HEAD",
        "--llmperf-json=out.jsonl",
        "--llmperf-against-budget=400",
        *options,
    ]
    done = subprocess.run(
        command, cwd=folder, check=False, capture_output=True, text=True, timeout=580
    )
    records = [
        json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return done.returncode, records[-1]["extra"]["against"]["metrics"]["throughput"], done.stdout


def test_equal_versions_of_a_real_model_do_not_fail(tmp_path):
    """PASS, with the pairs' autocorrelation printed: the rule is said to hold up to 0.5."""
    project(tmp_path, TESTS.format(model="arch:falcon-7b", tokens=128))
    code, kept, said = compared(tmp_path)
    # The figure that is asked for.
    printed = {name: kept[name] for name in ("outcome", "ratio", "decision")}
    print(json.dumps(printed, indent=1))  # noqa: T201
    assert kept["outcome"] in ("PASS", "UNDECIDED"), said
    assert code == 0, said
    assert kept["decision"]["autocorrelation"] <= 0.5


def test_a_slower_version_is_found(tmp_path):
    """The negative control: uncommitted, the head's model waits after each forward pass.

    It waits for half of the time that the pass took. The wait is the host's. A small eager model is
    bound by its host too, so that each token comes later by about as much.
    """
    tests = TESTS.format(model="slow_model:build", tokens=16).replace("+static-cache+compile", "")
    project(tmp_path, tests, slow_model=SLOW_MODEL, slowdown="SHARE = 0.0\n")
    (tmp_path / "slowdown.py").write_text("SHARE = 0.5\n", encoding="utf-8")
    code, kept, said = compared(tmp_path, "--llmperf-budget=5")
    # The figure that is asked for.
    printed = {name: kept[name] for name in ("outcome", "ratio", "decision")}
    print(json.dumps(printed, indent=1))  # noqa: T201
    assert (code, kept["outcome"]) == (1, "FAIL"), said
