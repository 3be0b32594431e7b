"""One ticket that is bad stops nobody else, or is waited for by name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llmperf.devices import lease_files
from pytest_llmperf.devices.leases import exclusive, lease
from pytest_llmperf.errors import DeviceBusy

CANARY = "s3cr3t-canary"

LOCKER = """
import fcntl, sys, time
file = open(sys.argv[1], "r+b")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(600)
"""
UNABLE = """
import resource, sys, time
from pathlib import Path
from pytest_llmperf.devices.leases import exclusive
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
try:
    with exclusive("cpu", timeout_s=1, directory=Path(sys.argv[1])):
        print("held", flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
time.sleep(600)
"""
HOLDER = """
import sys, time
from pathlib import Path
from pytest_llmperf.devices.leases import exclusive
with exclusive("cpu", timeout_s=10, directory=Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def start():
    """Start a program in a process of its own, and return it with the first line that it prints."""
    processes = []

    def run(script: str, *arguments: str | bytes | Path) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def folder_ticket(path: Path) -> None:
    path.mkdir()


def dangling_ticket(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def pipe_ticket(path: Path) -> None:
    os.mkfifo(path)


def foreign_name(path: Path) -> None:
    path.with_name("notes.ticket").write_text("not ours")


@pytest.mark.parametrize("make", [folder_ticket, dangling_ticket, pipe_ticket, foreign_name])
def test_what_is_no_ticket_holds_nothing(tmp_path, make):
    """And it stays where it is: it is not ours."""
    make(tmp_path / f"{7:012d}.ticket")
    before = names(tmp_path)
    with exclusive("cpu", timeout_s=0, directory=tmp_path):
        pass
    assert names(tmp_path) == sorted({*before, "queue.lock"})


def test_an_empty_ticket_that_was_never_made_holds_nothing(start, tmp_path):
    """Versions up to 0.1 left one where they could not write."""
    path = tmp_path / f"{7:012d}.ticket"
    path.touch()
    start(LOCKER, path)
    with exclusive("cpu", timeout_s=0, directory=tmp_path):
        pass


UNREADABLE = [
    b'{"number": 7, "wants": {"cpu"',
    b'{"number": "seven", "wants": {"cpu": 1.0}, "n": 1, "pid": 1}',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"number": 7, "wants": {"gpu": 1.0}, "n": 1, "pid": 1, "holds": ["cpu"]}',
    b'{"number": 7, "wants": {"cpu": -9.0}, "n": 1, "pid": 1, "holds": ["cpu"]}',
]


@pytest.mark.parametrize("content", UNREADABLE)
def test_a_living_ticket_that_cannot_be_read_is_waited_for_by_name(start, tmp_path, content):
    """It may hold the device; the error names its process and its file, and how to go on."""
    path = tmp_path / f"{7:012d}.ticket"
    path.write_bytes(content)
    process, _ = start(LOCKER, path)
    with (
        pytest.raises(DeviceBusy, match=rf"process {process.pid} .*{path.name}"),
        exclusive("cpu", timeout_s=0.1, directory=tmp_path),
    ):
        raise AssertionError("the ticket was passed over")
    process.kill()
    process.wait()
    with exclusive("cpu", timeout_s=0, directory=tmp_path):
        assert not path.exists()


def test_a_ticket_with_another_number_than_its_name_does_not_pass_for_another(start, tmp_path):
    """Numbers are what tickets are told apart by: the file's name says which."""
    path = tmp_path / f"{1:012d}.ticket"
    path.write_bytes(b'{"number": 0, "wants": {"cpu": 1.0}, "n": 1, "pid": 9, "holds": ["cpu"]}')
    start(LOCKER, path)
    with pytest.raises(DeviceBusy, match="process 9 "):
        lease({"cpu": 1.0}, timeout_s=0.1, directory=tmp_path)


def test_a_session_that_cannot_write_its_ticket_stops_no_other(start, tmp_path):
    """It gets an error that says why, and leaves nothing while it lives on."""
    process, line = start(UNABLE, tmp_path)
    assert line.startswith("DeviceBusy"), line
    assert "File too large" in line
    assert process.poll() is None
    assert list(tmp_path.glob("*.ticket")) == []
    with exclusive("cpu", timeout_s=0, directory=tmp_path):
        pass


def test_a_session_that_cannot_note_its_turn_leaves_a_whole_ticket_until_it_gives_up(tmp_path):
    """The disk fills up while it waits: others read the ticket as it was."""
    script = """
import resource, sys
from pathlib import Path
from pytest_llmperf.devices import leases
from pytest_llmperf.devices.leases import lease
folder = Path(sys.argv[1])
ours = lease({"cpu": 1.0}, timeout_s=1, directory=folder)
def full(_):
    ours.release()
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
try:
    lease({"cpu": 1.0}, timeout_s=5, directory=folder, on_wait=full)
except Exception as error:
    print(type(error).__name__, [path.name for path in folder.glob("*.*t*")])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "DeviceBusy []"


def test_a_command_line_that_is_no_utf_8_is_no_trouble(start, tmp_path):
    """Neither for the session nor for others."""
    process, line = start(HOLDER, tmp_path, b"caf\xe9/test_x.py")
    assert line == "held"
    with pytest.raises(DeviceBusy, match=f"process {process.pid} "):
        lease({"cpu": 1.0}, timeout_s=0, directory=tmp_path)


def test_what_stands_on_a_command_line_is_in_no_ticket_and_in_no_error(start, tmp_path):
    """Options carry passwords; who is in the way is named by process, program and folder."""
    start(HOLDER, tmp_path, f"--llmperf-store=postgresql://ci:{CANARY}@h/db", "--token", CANARY)
    assert not any(CANARY.encode() in path.read_bytes() for path in tmp_path.glob("*.ticket"))
    with pytest.raises(DeviceBusy) as caught:
        lease({"cpu": 1.0}, timeout_s=0, directory=tmp_path)
    assert CANARY not in str(caught.value)
    assert str(Path.cwd()) in str(caught.value)


def test_a_ticket_of_an_older_version_shows_no_password(start, tmp_path):
    """It carries the whole command line."""
    path = tmp_path / f"{7:012d}.ticket"
    command = f"pytest --llmperf-store=postgresql://ci:{CANARY}@h/db --hub-token {CANARY}"
    ticket = {"number": 7, "wants": {"cpu": 1.0}, "n": 1, "pid": 9, "holds": ["cpu"]}
    path.write_text(json.dumps({**ticket, "command": command}))
    start(LOCKER, path)
    with pytest.raises(DeviceBusy, match="process 9 ") as caught:
        lease({"cpu": 1.0}, timeout_s=0, directory=tmp_path)
    assert CANARY not in str(caught.value)


def test_a_stopped_process_in_the_queue_is_waited_for_only_so_long_and_named(
    start, tmp_path, monkeypatch
):
    """The waiting counts towards the user's own limit."""
    monkeypatch.setattr(lease_files, "QUEUE_S", 0.1)
    (tmp_path / "queue.lock").touch()
    process, _ = start(LOCKER, tmp_path / "queue.lock")
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(DeviceBusy, match=rf"queue\.lock.* process {process.pid} "):
        lease({"cpu": 1.0}, timeout_s=0.2, directory=tmp_path)


def test_a_lease_is_given_back_though_the_queue_is_locked(start, tmp_path, monkeypatch):
    """Its own lock ends, and that is what others look at."""
    monkeypatch.setattr(lease_files, "QUEUE_S", 0.1)
    ours = lease({"cpu": 1.0}, timeout_s=0, directory=tmp_path)
    process, _ = start(LOCKER, tmp_path / "queue.lock")
    ours.release()
    process.kill()
    process.wait()
    lease({"cpu": 1.0}, timeout_s=0, directory=tmp_path).release()


def test_a_queue_that_is_no_file_is_an_error_that_names_it(tmp_path):
    """A folder of that name cannot be locked."""
    (tmp_path / "queue.lock").mkdir()
    with pytest.raises(DeviceBusy, match=r"queue\.lock"):
        lease({"cpu": 1.0}, timeout_s=0, directory=tmp_path)
