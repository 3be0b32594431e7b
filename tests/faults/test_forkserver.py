"""Workers are forks of a server that has imported the engine, and programs where they cannot be."""

from __future__ import annotations

import os
import signal
import sys

import psutil
import pytest
from support.loading import plan_for

from pytest_llmperf.errors import WorkerDied, WorkerError
from pytest_llmperf.processes import TOKEN, process_state
from pytest_llmperf.testing import scripted_plan
from pytest_llmperf.wire.commands import Open
from pytest_llmperf.worker import forkserver
from pytest_llmperf.workers import forkservers
from pytest_llmperf.workers.group import WorkerGroup

DEADLINE_S = 60.0


@pytest.fixture(autouse=True)
def _servers_of_this_test():
    """No server is left by another test, none is left to another."""
    forkservers.end_all()
    yield
    forkservers.end_all()


@pytest.fixture
def fork(tmp_path):
    """Start workers that are to be forks; what is left of them is killed."""
    groups = []

    def start(engine: str = "scripted", **arguments) -> WorkerGroup:
        groups.append(
            WorkerGroup.start(log_dir=tmp_path, name="forked", fork_engine=engine, **arguments)
        )
        return groups[-1]

    yield start
    for group in groups:
        group.kill()


def server_of(group: WorkerGroup) -> psutil.Process:
    return psutil.Process(group.pids[0]).parent()


def test_two_workers_are_forks_of_one_server_and_processes_of_their_own(fork):
    """They differ in process group, session and token; neither is this process's child."""
    first, second = fork(), fork()
    assert (first.started, second.started) == ("forked", "forked")
    assert server_of(first).pid == server_of(second).pid
    pids = [first.pids[0], second.pids[0]]
    assert [os.getsid(pid) for pid in pids] == pids
    assert [os.getpgid(pid) for pid in pids] == pids
    tokens = {psutil.Process(pid).environ()[TOKEN] for pid in (*pids, server_of(first).pid)}
    assert len(tokens) == 3


def test_a_worker_has_no_variable_that_is_the_servers_alone(fork):
    """What keeps imports from starting threads is taken away again; its children inherit none."""
    group = fork()
    group.call(Open(plan=scripted_plan("fault=child@open")), deadline_s=DEADLINE_S)
    inherited = psutil.Process(group.pids[0]).children()[0].environ()
    assert not {"OPENBLAS_NUM_THREADS", "PYTORCH_NVML_BASED_CUDA_CHECK"} & inherited.keys()


def test_a_variable_of_the_session_that_has_changed_reaches_the_worker(fork, monkeypatch):
    """It gets a server with this environment: what reads it while it is imported sees it, too."""
    first = fork()
    monkeypatch.setenv("SOME_SETTING", "changed")
    second = fork()
    assert server_of(first).pid != server_of(second).pid
    assert server_of(second).environ()["SOME_SETTING"] == "changed"


def test_no_more_servers_are_kept_than_four(fork, monkeypatch):
    """The one that was not used for longest forks no more, and its worker can still be ended."""
    first = fork()
    for number in range(forkservers.MAX_SERVERS):
        monkeypatch.setenv("SOME_SETTING", str(number))
        fork()
    monkeypatch.delenv("SOME_SETTING")
    assert server_of(fork()).pid != server_of(first).pid
    assert first.close() is True


def test_a_worker_outlives_its_server_and_the_next_is_a_program(fork, gone, eventually):
    """The server is killed, by the kernel for memory for example; the reason is said once."""
    first = fork()
    server = server_of(first)
    server.kill()
    assert first.call(Open(plan=scripted_plan("")), deadline_s=DEADLINE_S)
    second = fork()
    assert second.started.startswith("program (the fork server")
    assert second.fork_failure
    assert fork().started == "forked"
    first.kill()
    assert eventually(lambda: gone(first.pids[0]))


def test_a_stopped_server_is_not_waited_for(fork, gone, eventually):
    """Its state is seen, it is killed, and the worker is a program."""
    server = server_of(fork())
    os.kill(server.pid, signal.SIGSTOP)
    assert eventually(lambda: process_state(server.pid) == "T")
    group = fork()
    assert "its state is T" in group.started
    assert eventually(lambda: gone(server.pid))


def test_a_server_with_a_thread_refuses_and_is_not_asked_again(fork, tmp_path, monkeypatch):
    """A sitecustomize starts one; the worker is a program and works."""
    code = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    (tmp_path / "sitecustomize.py").write_text(code, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    group = fork()
    assert group.started == "program (the fork server has 2 threads after its imports)"
    monkeypatch.setattr(forkservers, "ForkServer", None)
    assert fork().started == group.started
    assert group.call(Open(plan=scripted_plan("")), deadline_s=DEADLINE_S)


@pytest.mark.parametrize(
    ("path", "is_device"),
    [
        ("/dev/nvidia0", True),
        ("/dev/nvidia-uvm", True),
        ("/dev/dri/renderD128", True),
        ("/dev/kfd", True),
        ("/dev/null", False),
        ("/home/user/dev/nvidia0.txt", False),
    ],
)
def test_a_server_with_an_open_device_refuses(monkeypatch, path, is_device):
    """Files that are no accelerators are open in every process."""
    monkeypatch.setattr(forkserver, "_open_paths", lambda: ["/dev/null", path])
    assert forkserver.opened_devices() == ([path] if is_device else [])


def test_an_interpreter_without_the_engine_starts_a_program(fork):
    """The worker then says what is missing in its own words."""
    group = fork("no-such-engine")
    assert "the engine cannot be imported before the fork (UsageError)" in group.started


def test_an_interpreter_without_this_package_is_an_error_of_the_program(fork, tmp_path):
    """The server ends at once; what is told is what the program says."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    with pytest.raises(WorkerDied, match="No module named"):
        fork(python=str(python))


def test_a_server_that_answers_nonsense_is_given_up(fork, tmp_path):
    """An interpreter that speaks another language: the program's own error is told."""
    python = tmp_path / "python"
    body = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).send(b'nonsense')"
    script = f'exec {sys.executable} -c "{body}" $4'
    python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    python.chmod(0o755)
    with pytest.raises(WorkerError):
        fork(python=str(python))


def test_a_killed_session_leaves_no_server(tmp_path, gone, eventually):
    """The server sees the end of its socket, and kills what it has forked."""
    code = f"""
import os, signal
from pathlib import Path
import psutil
from pytest_llmperf.workers.group import WorkerGroup
group = WorkerGroup.start(log_dir=Path({str(tmp_path)!r}), name="x", fork_engine="scripted")
print(group.pids[0], psutil.Process(group.pids[0]).ppid(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with psutil.Popen([sys.executable, "-c", code], stdout=-1, text=True) as session:
        pids = [int(word) for word in session.stdout.readline().split()]
        session.wait(timeout=30)
    assert len(pids) == 2
    assert eventually(lambda: all(gone(pid) for pid in pids))


def test_what_a_worker_had_to_import_is_imported_before_the_next_fork(fork, monkeypatch):
    """Loading a model imports parts of transformers in the first worker, and none in the second."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    imported = []
    for _ in range(2):
        group = fork("transformers")
        assert group.started == "forked"
        group.call(Open(plan=plan_for("arch:tiny-falcon")), deadline_s=DEADLINE_S)
        group.close()
        imported.append("transformers." in group.logs[0].read_text(encoding="utf-8"))
    assert imported == [True, False]
