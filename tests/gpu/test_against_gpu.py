"""--llmperf-against on a GPU: one device for both versions, the real engine, and the autocorrelation of its pairs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

TESTS = """
import pytest
from pytest_llmperf import Decode


@pytest.mark.llmperf(model="{model}", strategy="bf16+static-cache+compile", device="cuda")
def test_decode(llm):
    llm.run(Decode(batch=1, prompt_tokens=128, new_tokens=128))
"""


def project(folder: Path, body: str) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.email=a@example.org", "-c", "user.name=A", *words], cwd=folder, check=True)

    git("init", "-q")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (folder / "test_it.py").write_text(body, encoding="utf-8")
    git("add", "-A")
    git("commit", "-q", "-m", "base")


def compared(folder: Path) -> tuple[int, dict, str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--llmperf-against=HEAD",
        "--llmperf-json=out.jsonl",
        "--llmperf-against-budget=400",
    ]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=580)
    records = [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    return done.returncode, records[-1]["extra"]["against"]["metrics"]["throughput"], done.stdout


def test_equal_versions_of_a_real_model_do_not_fail(tmp_path):
    """PASS, with the pairs' autocorrelation printed: the rule is said to hold up to 0.5."""
    project(tmp_path, TESTS.format(model="arch:falcon-7b"))
    code, kept, said = compared(tmp_path)
    print(json.dumps({name: kept[name] for name in ("outcome", "ratio", "decision")}, indent=1))  # noqa: T201 - the figure that is asked for
    assert kept["outcome"] in ("PASS", "UNDECIDED"), said
    assert code == 0, said
    assert kept["decision"]["autocorrelation"] <= 0.5


def test_a_slower_version_is_found(tmp_path):
    """The negative control: uncommitted, the head waits for the device after each kernel."""
    base = TESTS.format(model="arch:small-llama").replace("+static-cache+compile", "")
    project(tmp_path, base)
    (tmp_path / "test_it.py").write_text(f"import os\nos.environ['CUDA_LAUNCH_BLOCKING'] = '1'\n{base}", encoding="utf-8")
    code, kept, said = compared(tmp_path)
    assert (code, kept["outcome"]) == (1, "FAIL"), said
