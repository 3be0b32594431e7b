"""Workers that send what no worker sends: a named error in time, and bounded memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

LARGEST_MIB = 300
DEADLINE_S = 2.0
WORKER = """
import os, socket, sys, time
kind = sys.argv[1]
from pytest_llmperf.wire.frames import frame, worker_end
from pytest_llmperf.wire.messages import Failure, Heartbeat, Hello, Reply
sock = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
wire = worker_end(sock)

def raw(data):
    sock.setblocking(True)
    sock.sendall(data)

def packed(value):
    return len(value).to_bytes(4, "big") + value

if kind == "large greeting":
    raw((2**26).to_bytes(4, "big") + b"x" * 2**26)
wire.send(Hello(rank=0, pid=os.getpid(), python="3"), timeout_s=None)
wire.receive(timeout_s=None)
if kind == "largest frame":
    raw((256 * 2**20).to_bytes(4, "big"))
    while True:
        raw(bytes(2**20))
if kind == "many small values":
    reply = b"\\x83\\xa4type\\xa5Reply\\xa4rank\\x00"
    reply += b"\\xa6result\\x83\\xa4type\\xa7BodyRan\\xa6called\\xc3"
    n = 2**20
    raw(packed(reply + b"\\xa7reports\\xdd" + n.to_bytes(4, "big") + b"\\x80" * n))
if kind == "nested":
    raw(packed(b"\\x91" * 2**20))
if kind == "flood of heartbeats":
    beats = frame(Heartbeat(rank=0, doing="x")) * 5000
    while True:
        raw(beats)
if kind == "large heartbeats":
    beat = frame(Heartbeat(rank=0, doing="x" * 50_000_000))
    while True:
        raw(beat)
if kind == "another rank":
    wire.send(Reply(rank=77, failure=Failure(kind="LoadError", message="no")), timeout_s=None)
if kind == "large message":
    text = "\\x1b[31m\\n::error::x" * 10_000 + "m" * 1_000_000
    failure = Failure(kind="LoadError", message=text)
    wire.send(Reply(rank=0, failure=failure), timeout_s=None)
time.sleep(600)
"""
SESSION = """
import json, sys, time
from pathlib import Path
from pytest_llmperf.testing import scripted_plan
from pytest_llmperf.wire.commands import Open
from pytest_llmperf.workers.group import WorkerGroup

def high_water_mib():
    # Of this program alone: getrusage keeps what the process held before it became this program.
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) // 1024

for kind in sys.argv[3:]:
    start_s = time.monotonic()
    try:
        group = WorkerGroup.start(
            log_dir=Path(sys.argv[2]), name="hostile", program=(sys.argv[1], kind)
        )
        group.call(Open(plan=scripted_plan("")), deadline_s={deadline})
        text = "it returned"
    except Exception as error:
        text = f"{{type(error).__name__}}: {{error}}"
    mib = high_water_mib()
    print(json.dumps([kind, mib, time.monotonic() - start_s, text]), flush=True)
"""
EXPECTED = {
    "large greeting": "WorkerError: .* the limit is 65536",
    "largest frame": "WorkerError: .* the limit is 2097152",
    "many small values": "WorkerError: .*does not decode",
    "nested": "WorkerError: .*does not decode",
    "flood of heartbeats": "WorkerHung: .*no answer within its deadline",
    "large heartbeats": "WorkerError: .* the limit is 2097152",
    "another rank": "WorkerError: .*sent a Reply as rank 77",
    "large message": r"LoadError: \\x1b\[31m\n: :error::x",
}


def outcomes(tmp_path: Path, *kinds: str) -> dict[str, list]:
    """What a session with these workers, one after another, says of each."""
    program = tmp_path / "hostile.py"
    program.write_text(WORKER)
    session = SESSION.format(deadline=DEADLINE_S)
    command = [sys.executable, "-c", session, str(program), str(tmp_path / "logs"), *kinds]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return {row[0]: row[1:] for row in map(json.loads, output.stdout.splitlines())}


def test_no_worker_fills_the_memory_of_its_session_or_keeps_it(tmp_path):
    """The largest resident memory of the session's process, over all of them."""
    seen = outcomes(tmp_path, *EXPECTED)
    for kind, pattern in EXPECTED.items():
        mib, took_s, text = seen[kind]
        assert re.match(pattern, text, re.DOTALL), text[:1000]
        assert mib <= LARGEST_MIB, kind
        assert took_s < 60, kind
        assert len(text) < 200_000


def test_without_bounds_memory_is_filled(tmp_path, monkeypatch):
    """The check above can fail."""
    monkeypatch.setitem(
        globals(),
        "SESSION",
        "from pytest_llmperf.wire import bounds\nbounds.SMALL_BYTES = 2**30\n" + SESSION,
    )
    assert outcomes(tmp_path, "largest frame")["largest frame"][0] > LARGEST_MIB
