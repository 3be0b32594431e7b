"""A worker that dies, hangs, runs out of memory or refuses fails its command with the reason.

It does so in bounded time.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from pytest_llmperf.errors import (
    InvalidRun,
    LoadError,
    OutOfMemory,
    UsageError,
    WorkerDied,
    WorkerError,
    WorkerHung,
)
from pytest_llmperf.testing import scripted_plan
from pytest_llmperf.wire.commands import Close, Describe, Open
from pytest_llmperf.wire.results import Closed, Opened, Ran
from pytest_llmperf.workers import exchange
from pytest_llmperf.workers import group as workers_group

DEADLINE_S = 30.0


def opened(group, script, ranks=1):
    return group.call(Open(plan=scripted_plan(script, ranks=ranks)), deadline_s=DEADLINE_S)


def test_a_worker_opens_runs_and_closes_by_itself(start, run):
    """The normal way: no kill is needed, and nothing can be asked afterwards."""
    with start() as group:
        assert isinstance(opened(group, "ttft=50ms"), Opened)
        ran = group.call(run, deadline_s=DEADLINE_S)
        assert isinstance(ran, Ran)
        assert len(ran.run.trace.requests[0].events) == 3
        assert group.close() is True
        assert not group.alive
        with pytest.raises(WorkerError, match="have ended"):
            group.call(run, deadline_s=DEADLINE_S)


def test_the_session_may_send_close_itself(start, gone):
    """After an answered Close the worker exits, and close() finds nothing left to do."""
    group = start()
    assert isinstance(group.call(Close(), deadline_s=DEADLINE_S), Closed)
    assert group.close() is True
    assert gone(group.pids[0])


def test_a_worker_that_needs_no_torch_loads_none(start):
    """The engine is imported on Open, and only the one that is asked for."""
    group = start()
    opened(group, "")
    assert not any("torch" in m.path for m in psutil.Process(group.pids[0]).memory_maps())


def test_the_sessions_side_imports_no_torch():
    """Workers, wire and leases are what the pytest process loads."""
    modules = "pytest_llmperf.workers.group, pytest_llmperf.devices.leases"
    script = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_worker_killed_in_a_call_is_reported_with_its_signal(start, run):
    """kill -9 while the command runs raises WorkerDied at once.

    The error has the usual cause and what the kernel's counters say.
    """
    group = start()
    opened(group, "fault=hang@run")
    with pytest.raises(WorkerDied, match=r"SIGKILL in Run.*out-of-memory killer"):
        group.call(
            run, deadline_s=DEADLINE_S, on_beat=lambda _: os.kill(group.pids[0], signal.SIGKILL)
        )
    assert not group.alive


def test_a_kill_with_a_risen_kernel_counter_is_out_of_memory(start, run, monkeypatch):
    """When the kernel's own counter rose meanwhile, the kill is its out-of-memory killer's."""
    group = start()
    opened(group, "fault=die@run")
    before = {path: count + 1 for path, count in exchange.read_counters().items()} or {
        "memory.events": 1
    }
    monkeypatch.setattr(exchange, "read_counters", lambda: before)
    monkeypatch.setattr(group, "_oom_before", dict.fromkeys(before, 0))
    with pytest.raises(OutOfMemory, match=r"oom_kill 0 -> [1-9]"):
        group.call(run, deadline_s=DEADLINE_S)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("fault=exit@run", r"exit code 3 in Run"),
        ("fault=segv@run", r"(?s)SIGSEGV in Run.*most recent call first"),
    ],
)
def test_a_worker_that_ends_itself_is_reported_with_how_it_ended(start, run, script, reason):
    """An exit code is named; a segmentation fault leaves its stacks in the log."""
    group = start()
    opened(group, script)
    with pytest.raises(WorkerDied, match=reason):
        group.call(run, deadline_s=DEADLINE_S)


def test_a_python_loop_is_killed_at_its_deadline_with_its_stack(start, run, gone):
    """The heart beats on, so only the deadline ends it; the message shows the line that loops."""
    group = start()
    opened(group, "fault=spin@run")
    with pytest.raises(WorkerHung, match=r"(?s)deadline of 0\.5 s.*in _spin"):
        group.call(run, deadline_s=0.5)
    assert gone(group.pids[0])


def test_a_stopped_worker_is_noticed_by_its_silence(start, run, gone):
    """SIGSTOP: no heartbeat comes, long before the deadline.

    The message gives the state of the process.
    """
    group = start(silence_s=1.5)
    opened(group, "fault=hang@run")
    with pytest.raises(WorkerHung, match=r"(?s)no heartbeat for 1\.5 s.*its state is T"):
        group.call(
            run, deadline_s=DEADLINE_S, on_beat=lambda _: os.kill(group.pids[0], signal.SIGSTOP)
        )
    assert gone(group.pids[0])


def test_heartbeats_say_what_the_worker_does(start, run):
    """The live line gets the rank, the command and the repetition."""
    group, heard = start(), []
    opened(group, "fault=hang@run")

    def hear(beat):
        heard.append(beat)
        os.kill(group.pids[0], signal.SIGKILL)

    with pytest.raises(WorkerDied):
        group.call(run, deadline_s=DEADLINE_S, on_beat=hear)
    assert [(beat.rank, beat.doing) for beat in heard] == [(0, "Run 0")]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("fault=oom@run", "MemoryError"),
        ("fault=cuda_oom@run", "CUDA out of memory"),
        ("fault=exhaust@run", "MemoryError"),
    ],
)
def test_out_of_memory_in_the_worker_has_its_own_error(start, run, script, reason):
    """MemoryError, torch's error by its class name, and a real allocation past an rlimit."""
    group = start()
    opened(group, script)
    with pytest.raises(OutOfMemory, match=reason):
        group.call(run, deadline_s=DEADLINE_S)
    assert not group.alive


def test_a_model_that_refuses_to_load_leaves_the_worker_usable(start):
    """LoadError is an answer: the next plan loads in the same worker."""
    group = start()
    with pytest.raises(LoadError, match="refuses to load") as caught:
        opened(group, "fault=refuse@open")
    assert "scripted/faults.py" in caught.value.__notes__[0]
    assert group.alive
    assert isinstance(opened(group, ""), Opened)


def test_an_invalid_run_leaves_the_worker_usable(start, run):
    """InvalidRun on the first repetition; the second is measured."""
    group = start()
    opened(group, "fault=invalid@run1")
    with pytest.raises(InvalidRun):
        group.call(run, deadline_s=DEADLINE_S)
    assert isinstance(group.call(run, deadline_s=DEADLINE_S), Ran)


def test_a_misspelt_script_is_a_usage_error_with_the_nearest_option(start):
    """Errors of the user's own text arrive as they were raised."""
    with pytest.raises(UsageError, match="Did you mean 'ttft'"):
        opened(start(), "ttf=1ms")


def test_a_crash_carries_the_workers_traceback(start, run):
    """An error that is none of ours becomes WorkerError with the traceback of the worker."""
    group = start()
    opened(group, "fault=crash@run")
    with pytest.raises(
        WorkerError, match=r"(?s)RuntimeError: scripted: a crash.*scripted/faults\.py"
    ):
        group.call(run, deadline_s=DEADLINE_S)
    assert not group.alive


def test_commands_out_of_order_are_errors(start):
    """Describe before Open, and Open twice."""
    with pytest.raises(WorkerError, match="Send Open first"):
        start().call(Describe(), deadline_s=DEADLINE_S)
    group = start()
    opened(group, "")
    with pytest.raises(WorkerError, match="already holds a model"):
        opened(group, "")


def test_of_three_ranks_the_one_that_failed_is_named_and_all_are_killed(start, run, gone):
    """Rank 1 of 3 crashes: its traceback is in the message, and the others do not outlive it."""
    group = start(ranks=3)
    opened(group, "fault=crash@run:rank1,fault=hang@run:rank0,fault=hang@run:rank2", ranks=3)
    with pytest.raises(WorkerError, match=r"(?s)rank 1 of 3 .*RuntimeError: scripted: a crash"):
        group.call(run, deadline_s=DEADLINE_S)
    assert all(gone(pid) for pid in group.pids)


def test_three_ranks_answer_in_rank_order_with_their_own_environment(start, run):
    """call_all gives each rank's result; a rank has RANK, WORLD_SIZE and a common private port."""
    group = start(ranks=3)
    opened(group, "fault=child@open", ranks=3)
    assert len(group.call_all(run, deadline_s=DEADLINE_S)) == 3
    inherited = [environment_of_child(pid) for pid in group.pids]
    assert [env["RANK"] for env in inherited] == ["0", "1", "2"]
    assert {(env["WORLD_SIZE"], env["MASTER_ADDR"]) for env in inherited} == {("3", "127.0.0.1")}
    assert len({env["MASTER_PORT"] for env in inherited}) == 1


def environment_of_child(pid: int) -> dict[str, str]:
    """Return what a worker's child has inherited; of a fork the system shows the server's own."""
    return psutil.Process(pid).children()[0].environ()


def test_one_rank_inherits_no_launcher_variables(start, monkeypatch):
    """pytest itself may run under a launcher.

    Its LOCAL_RANK must not make the worker's libraries start a process group.
    """
    monkeypatch.setenv("LOCAL_RANK", "5")
    group = start()
    opened(group, "fault=child@open")
    assert "LOCAL_RANK" not in environment_of_child(group.pids[0])


def test_an_answer_of_one_rank_lets_the_others_live_when_they_answer_too(start):
    """One rank refuses while the others load: the error names it, and every rank stays."""
    group = start(ranks=2)
    with pytest.raises(LoadError):
        opened(group, "fault=refuse@open:rank1", ranks=2)
    assert group.alive


def test_a_rank_that_waits_for_one_that_refused_is_killed_after_a_grace(start, monkeypatch):
    """In a collective the others may wait for ever.

    They get a moment, then the group ends; its error is the refusal.
    """
    monkeypatch.setattr(exchange, "_GRACE_S", 0.2)
    group = start(ranks=2)
    with pytest.raises(LoadError):
        opened(group, "fault=refuse@open:rank1,fault=hang@open:rank0", ranks=2)
    assert not group.alive


def child_of(group) -> int:
    return int(re.search(r"child (\d+)", group.log_tail())[1])


@pytest.mark.parametrize("ending", ["close", "kill", "fault=die@run", "fault=crash@run"])
def test_what_a_worker_started_ends_with_it(start, run, eventually, gone, ending):
    """A grandchild in a session of its own escapes the group, and is found by its environment."""
    group = start()
    opened(group, f"fault=child@open,{ending if '@' in ending else ''}")
    child = child_of(group)
    assert not gone(child)
    if "@" in ending:
        with pytest.raises(WorkerError):
            group.call(run, deadline_s=DEADLINE_S)
    else:
        getattr(group, ending)()
    assert eventually(lambda: gone(child))


def test_an_error_of_the_callers_own_ends_the_worker(start, run, gone):
    """An exception in on_beat, or Ctrl-C there, leaves a command half done.

    The group is killed and the error goes on.
    """
    group = start()
    opened(group, "fault=hang@run")

    def interrupt(_beat):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        group.call(run, deadline_s=DEADLINE_S, on_beat=interrupt)
    assert gone(group.pids[0])


def fake_interpreter(folder: Path, body: str) -> str:
    """Return an executable for a worker's interpreter that does `body` with the socket `sock`."""
    path = folder / "python"
    head = (
        f"#!{sys.executable}\nimport socket, sys, time\n"
        "sock = socket.socket(fileno=int(sys.argv[sys.argv.index('--fd') + 1]))\n"
    )
    path.write_text(head + body, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "sock.sendall(b'\\xff' * 8); time.sleep(60)",
            "stream is corrupt: a frame of 4294967295 bytes",
        ),
        ("sock.sendall(b'\\0\\0\\0\\4text'); time.sleep(60)", "does not decode"),
        ("sock.sendall(b'\\0\\0\\0\\4te')", "middle of a message|ended by exit code 0"),
        ("sock.close(); sys.exit(7)", "exit code 7"),
    ],
)
def test_a_stream_that_is_no_conversation_is_an_error(start, tmp_path, body, reason):
    """Impossible lengths, undecodable bytes, and a stream that ends in a frame are named.

    The process is killed.
    """
    with pytest.raises(WorkerError, match=reason):
        start(python=fake_interpreter(tmp_path, body))


def test_a_worker_that_says_nothing_at_start_is_given_up(start, tmp_path):
    """The wait for the first message is bounded too.

    No signal is sent to a process that has no handler for it.
    """
    with pytest.raises(WorkerHung, match="had not come up"):
        start(python=fake_interpreter(tmp_path, "time.sleep(60)"), start_deadline_s=0.5)


def test_an_interpreter_that_cannot_run_is_a_usage_error(start):
    """A path that does not exist is the user's to correct."""
    with pytest.raises(UsageError, match="/nonexistent/python"):
        start(python="/nonexistent/python")


def test_an_interpreter_without_the_package_says_what_it_lacks(start, tmp_path):
    """Python's own complaint is in the message, and the note says what is needed."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    with pytest.raises(WorkerDied, match="No module named") as caught:
        start(python=str(bare))
    assert "needs pytest-llmperf" in caught.value.__notes__[0]


def test_a_corrupt_command_ends_the_worker(start, eventually):
    """The worker trusts a broken stream no further than the session does.

    Its log says why it ended.
    """
    group = start()
    group._workers[0].wire._socket.send(b"\xff" * 8)
    assert eventually(lambda: not group.alive)
    assert "stream is corrupt" in group.log_tail()


def test_workers_started_in_a_thread_outlive_it(start, run):
    """The kernel's parent-death signal follows the starting thread.

    Therefore only the main thread asks for it.
    """
    groups = []
    thread = threading.Thread(target=lambda: groups.append(start()))
    thread.start()
    thread.join()
    opened(groups[0], "")
    assert isinstance(groups[0].call(run, deadline_s=DEADLINE_S), Ran)


def test_a_forked_child_that_exits_leaves_its_parents_workers_alone(start):
    """The exit handler ends only workers that this very process started."""
    group = start()
    group._owner_pid += 1
    workers_group._kill_all()
    assert group.alive
    group._owner_pid -= 1
    workers_group._kill_all()
    assert not group.alive
