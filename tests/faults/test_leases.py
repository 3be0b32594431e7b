"""A device is measured on by one session at a time, and a dead session holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llmperf.devices.leases import exclusive
from pytest_llmperf.errors import DeviceBusy

HOLDER = """
import signal, sys
from pathlib import Path
from pytest_llmperf.devices.leases import exclusive
with exclusive(sys.argv[1], timeout_s=10, directory=Path(sys.argv[2])):
    print("held", flush=True)
    signal.pause()
"""
ADDER = """
import sys
from pathlib import Path
from pytest_llmperf.devices.leases import exclusive
folder, device = Path(sys.argv[1]), sys.argv[2]
for _ in range(20):
    with exclusive(device, timeout_s=60, directory=folder):
        (folder / "inside").touch(exist_ok=False)
        (folder / "inside").unlink()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds "cuda:0"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "cuda:0", str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_held_device_is_waited_for_and_then_named_with_its_holder(holder, tmp_path):
    """The error says who holds it; the waiting is announced once."""
    waits = []
    with (
        pytest.raises(DeviceBusy, match=rf"cuda:0 is in use: process {holder.pid} .*within 0\.2 s"),
        exclusive("cuda:0", timeout_s=0.2, directory=tmp_path, on_wait=waits.append),
    ):
        raise AssertionError("two processes hold the device")
    assert len(waits) == 1
    assert str(holder.pid) in waits[0]


def test_another_device_is_free(holder, tmp_path):
    """A lease is for one device."""
    with exclusive("cuda:1", timeout_s=0, directory=tmp_path):
        pass


def test_a_dead_holder_holds_nothing(holder, tmp_path):
    """kill -9 frees the device, whatever the holder left behind in files."""
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(timeout=10)
    with exclusive("cuda:0", timeout_s=5, directory=tmp_path):
        pass


def test_a_process_may_take_its_own_device_again(tmp_path):
    """The inner lease neither waits nor frees the outer one."""
    with exclusive("cpu", timeout_s=0, directory=tmp_path):
        with exclusive("cpu", timeout_s=0, directory=tmp_path):
            pass
        script = HOLDER.replace("timeout_s=10", "timeout_s=0.1")
        other = subprocess.run(
            [sys.executable, "-c", script, "cpu", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"process {os.getpid()} " in other.stderr


def test_an_error_inside_frees_the_device(tmp_path):
    """The next session need not wait for this one to end."""
    with pytest.raises(ZeroDivisionError), exclusive("cpu", timeout_s=0, directory=tmp_path):
        1 / 0  # noqa: B018
    assert list(tmp_path.glob("*.ticket")) == []


def test_a_file_that_a_dead_process_left_holds_nothing(tmp_path):
    """Whatever is in it: nobody has it locked."""
    for number, content in ((1, ""), (7, '{"number": 7, "holds": ["cpu"]')):
        (tmp_path / f"{number:012d}.ticket").write_text(content)
    with exclusive("cpu", timeout_s=0, directory=tmp_path):
        assert len(list(tmp_path.glob("*.ticket"))) == 1


def test_a_forked_child_holds_nothing_and_frees_nothing(tmp_path):
    """It does not keep its parent's device when the parent gives it back.

    Nor does it give it back for the parent.
    """
    script = """
import os, sys, time
from pathlib import Path
from pytest_llmperf.devices.leases import lease
folder = Path(sys.argv[1])
held = lease({"cpu": 1.0}, timeout_s=0, directory=folder)
if os.fork() == 0:
    held.release()
    (folder / "tried").touch()
    time.sleep(60)
while not (folder / "tried").exists():
    time.sleep(0.01)
print("held", flush=True)
sys.stdin.readline()
held.release()
print("given back", flush=True)
sys.stdin.readline()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(DeviceBusy), exclusive("cpu", timeout_s=0, directory=tmp_path):
            pass
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "given back\n"
        with exclusive("cpu", timeout_s=0, directory=tmp_path):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def add(folder: Path, devices: list[str]) -> list[int]:
    """Exit codes of processes that each enter 20 times and fail when they meet another inside."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ADDER, str(folder), device], stderr=subprocess.DEVNULL
        )
        for device in devices
    ]
    return [process.wait(timeout=60) for process in processes]


def test_processes_that_share_a_device_never_meet(tmp_path):
    """Three processes, 20 entries each."""
    assert add(tmp_path, ["cpu"] * 3) == [0, 0, 0]


def test_processes_that_do_meet_are_noticed(tmp_path):
    """The check above can fail: someone is already inside."""
    (tmp_path / "inside").touch()
    assert add(tmp_path, ["cpu"]) == [1]


def test_a_planted_directory_is_refused(tmp_path):
    """A file, or a link to somewhere else, in the shared temporary folder."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    (tmp_path / "file").touch()
    for path in (link, tmp_path / "file"):
        with (
            pytest.raises(DeviceBusy, match=r"lease directory"),
            exclusive("cpu", timeout_s=0, directory=path),
        ):
            pass


MEASURING = """
from pathlib import Path
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.devices.held import Gpus
from pytest_llmperf.devices.leases import lease
from pytest_llmperf.workers.pool import Pool
from pytest_llmperf.workers.this_host import ThisHost
import sys
host = ThisHost(Gpus("all", wait_s=5), wait_s=5, log_dir=Path("logs"))
pool = Pool(lambda _: None, place=host, host=host, timeout_s=5, progress=lambda *_: None)
model = ModelRef(name="m", kind="arch", location="m")
plan = LoadPlan(model=model, engine=sys.argv[1], device=sys.argv[2])
def free():
    try:
        lease({"cpu": 1.0}, timeout_s=0).release()
    except Exception:  # noqa: BLE001 - any error is the right answer here
        return False
    return True
with pool.undisturbed([plan]):
    with host.alone(plan):
        pass
    print(free())
"""


@pytest.mark.parametrize(
    ("engine", "device", "free"),
    [
        ("transformers", "cpu", "False"),
        ("inprocess", "cpu", "False"),
        ("scripted", "cpu", "True"),
        ("transformers", "cuda", "True"),
    ],
)
def test_the_cpu_is_held_between_the_commands_of_a_measurement(tmp_path, engine, device, free):
    """Not by an engine whose time is virtual, nor where models go to a GPU.

    Others might wait for that GPU with the CPU in hand.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURING, engine, device],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == free
