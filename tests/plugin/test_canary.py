"""A marked secret is put into every input of a session, and is in none of its outputs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

CANARY = "c4n4ry"
SECRETS = {
    "HF_TOKEN": f"{CANARY}-hub-token",
    "OPENAI_KEY": f"{CANARY}-api-key-of-a-server",
    "HTTPS_PROXY": f"http://user:{CANARY}-proxy@127.0.0.1:9",
    "PGPASSWORD": f"{CANARY}-database",
    "PROJECT_SECRET": f"{CANARY}-conftest",
}
STORE = f"postgresql+psycopg://ci:{CANARY}-store@127.0.0.1:9/db?sslpassword={CANARY}-tls"
CONFTEST = """
import os

def pytest_addoption(parser):
    parser.addoption("--project-secret", default=os.environ["PROJECT_SECRET"])
    parser.addini("project_password", "a password")
"""
ECHO = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Echo(BaseHTTPRequestHandler):
    def answer(self):
        text = json.dumps({"data": [{"id": "tiny"}], "error": {"message":
            "key " + str(self.headers.get("Authorization")).split()[-1] + " is wrong\\r::error::"
            + os.environ["HF_TOKEN"]}})
        self.send_response(401 if self.command == "POST" else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = answer

HTTPServer(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
"""
TESTS = """
import os, time
import pytest
from pytest_llmperf import Decode, Serve

WORK = Decode(batch=1, prompt_tokens=8, new_tokens=11)
OPTIONS = {
    "command": "PYTHON echo.py {port} --api-key KEY",
    "name": "tiny",
    "api_key_env": "OPENAI_KEY",
    "stop_timeout": 0.5,
}

@pytest.mark.llmperf(model="scripted:ttft=50ms,tpot=10ms", engine="scripted")
def test_measured(llm):
    llm.run(WORK)
    time.sleep(1)

@pytest.mark.llmperf(model="scripted:fault=die@run", engine="scripted")
def test_died(llm):
    llm.run(WORK)

@pytest.mark.llmperf(model="arch:tiny-llama", engine="server", options=OPTIONS, device="cpu")
def test_refused(llm):
    llm.run(Serve(concurrency=1, requests=4, prompt_tokens=4, max_new_tokens=3))
"""
FILES = {
    "html": "report.html",
    "json": "out.jsonl",
    "markdown": "out.md",
    "openmetrics": "out.txt",
    "gitlab": "gitlab.json",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project that gets its secrets from everywhere."""
    tests = TESTS.replace("PYTHON", sys.executable).replace('KEY"', f'{CANARY}-command"', 1)
    for name, text in {
        "conftest.py": CONFTEST,
        "echo.py": ECHO,
        "test_it.py": tests,
        "pytest.ini": f"[pytest]\nproject_password = {CANARY}-ini\n",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def command_lines(folder: Path, until: threading.Event) -> set[str]:
    """What other users of the host see of the processes that work in a folder."""
    seen: set[str] = set()
    while not until.is_set():
        for process in psutil.process_iter():
            try:
                if str(folder) == process.environ().get("CANARY_FOLDER"):
                    seen.add(" ".join(process.cmdline()))
            except (psutil.Error, OSError):
                continue
        time.sleep(0.05)
    return seen


def session(folder: Path, *arguments: str) -> tuple[str, set[str]]:
    """Run pytest; return what it printed, and the command lines that were seen meanwhile."""
    environment = {
        **os.environ,
        **SECRETS,
        "CANARY_FOLDER": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "LLMPERF_CACHE": str(folder / "cache"),
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
    }
    over, seen = threading.Event(), set()
    watch = threading.Thread(target=lambda: seen.update(command_lines(folder, over)))
    watch.start()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "--junitxml=j.xml"]
    command += [f"--llmperf-{name}={file}" for name, file in FILES.items()]
    result = subprocess.run(
        [*command, f"--llmperf-store={STORE}", *arguments],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    over.set()
    watch.join()
    return result.stdout + result.stderr, seen


def test_a_marked_secret_is_in_no_output(folder):
    """Not on the screen, in no report, record, spool, ticket or log, on no command line of ours."""
    before = set(folder.rglob("*"))
    output, seen = session(folder)
    assert "1 passed" in output, output
    assert "key *** is wrong" in output, output
    assert CANARY not in output
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    written = [path for path in files if path not in before]
    assert {folder / name for name in [*FILES.values(), "j.xml", "summary.md"]} <= set(written)
    assert any("spool" in path.name for path in written)
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]
    ours = [line for line in seen if "pytest_llmperf" in line]
    assert ours
    assert not [line for line in ours if CANARY in line]


def test_the_check_sees_a_secret_that_is_printed(folder):
    """The check above can fail: a test prints one itself."""
    (folder / "test_it.py").write_text(
        "import os\ndef test_prints():\n    print(os.environ['HF_TOKEN'])\n    assert 0\n"
    )
    assert CANARY in session(folder)[0]
