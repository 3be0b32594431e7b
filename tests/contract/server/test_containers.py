"""A server from an image: the command that a container program gets, and the end of it.

The container program is a script that runs the command on this host and notes what it was told.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.stubs import STUB

from pytest_llmperf.engines.server.starting.container import container, files_of
from pytest_llmperf.errors import LoadError, UsageError

RUNTIME = """#!{python}
import json, os, sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps(words) + "\\n")
if words[0] == "image":
    print("sha256:1234")
if words[0] == "run":
    program = next(w for w in words if w.startswith("--entrypoint=")).partition("=")[2]
    image = words.index("stub:1")
    os.execv(program, [program, *words[image + 1 :]])
"""


@pytest.fixture
def told(tmp_path, monkeypatch):
    """What a container program was told, one list of words a call."""
    log, runtime = tmp_path / "told.jsonl", tmp_path / "boxes"
    runtime.write_text(RUNTIME.format(python=sys.executable, log=str(log)))
    runtime.chmod(0o755)
    monkeypatch.setenv("LLMPERF_CONTAINER", str(runtime))
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


def test_a_server_runs_from_its_image_and_its_container_is_removed(start, told, model):
    """With the host's network and the model's files; its image's hash is a version."""
    command = f"{sys.executable} {STUB} --port {{port}} --model tiny"
    session = start(command=command, image="stub:1", image_args="--shm-size 1g")
    assert session.opened().versions["image"] == "sha256:1234"
    session.close()
    run, inspect, remove = told()
    assert {"--network=host", "--rm", f"--volume={model}:{model}:ro", "--shm-size"} <= set(run)
    assert run.index(f"--entrypoint={sys.executable}") + 1 == run.index("stub:1")
    assert inspect[:2] == ["image", "inspect"]
    name = next(word for word in run if word.startswith("--name=")).partition("=")[2]
    assert remove == ["rm", "--force", name]


def test_without_a_container_program_an_image_is_refused(monkeypatch):
    """The words name the image, and how to name a program."""
    monkeypatch.setenv("LLMPERF_CONTAINER", "/no/such")
    with pytest.raises(UsageError, match=r"image = 'x'.*LLMPERF_CONTAINER"):
        container("x", ())
    monkeypatch.setenv("LLMPERF_CONTAINER", "")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="no docker or podman is here"):
        container("x", ())


def test_gpus_of_this_process_are_the_containers(told):
    """By the driver's own names, in docker's quotes."""
    words = container("i", ("--a",)).command(
        ["vllm", "serve"], environment={"A": "1"}, files=[Path("/m")], gpus="GPU-1,GPU-2"
    )
    assert '--gpus="device=GPU-1,GPU-2"' in words
    assert words[-4:] == ["--a", "--entrypoint=vllm", "i", "serve"]
    assert "--env=A=1" in words


def test_links_in_a_models_folder_are_followed(tmp_path):
    """A snapshot of the hub is links to blobs elsewhere."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    (blobs / "1").write_text("x")
    (snapshot / "config.json").symlink_to(blobs / "1")
    assert files_of(str(snapshot)) == [snapshot, blobs]
    assert files_of("org/model") == []


def test_a_server_at_a_url_is_started_anew_by_its_own_command(start, tmp_path):
    """A command that fails is said with its words."""
    mark = tmp_path / "restarted"
    running = start()
    base = running._server.base
    again = start(command="", url=base, restart=f"touch {mark}")
    assert mark.exists()
    assert again.opened().versions["server"] == "unknown"
    with pytest.raises(LoadError, match=r"exit code 3:\nno luck"):
        start(command="", url=base, restart="echo no luck; exit 3")
