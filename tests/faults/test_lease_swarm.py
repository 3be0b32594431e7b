"""Eight real processes that lease devices and are killed at random.

There are never two holders, none is lost, and none starves.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.lease_swarm import DEVICES

from pytest_llmperf.devices.leases import lease

SCRIPT = Path(__file__).parents[1] / "support" / "lease_swarm.py"
CYCLES = 200


def swarm(
    folder: Path, *, cycles: int = CYCLES, seed: int = 1, flags: tuple[str, ...] = ()
) -> list[dict]:
    """What each lease saw. A line that a killed process did not finish is left out."""
    command = [sys.executable, str(SCRIPT), str(folder), str(cycles), str(seed), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines() if line.endswith("}")]


def met(rows: list[dict]) -> list[str]:
    """Devices on which a process found another one inside."""
    return [row["met"] for row in rows if row["met"]]


def overtaken(rows: list[dict]) -> list[dict]:
    """Requests for all of every device that waited while a later one was served before them."""
    waited = [
        row for row in rows if row["n"] == len(DEVICES) and row["share"] == 1.0 and row["waits"]
    ]
    return [
        row
        for row in waited
        if any(o["asked"] > row["waits"][0] and o["got"] < row["got"] for o in rows)
    ]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swarm")
    return folder, swarm(folder)


def test_no_two_processes_hold_a_device(rows):
    """In at least 200 leases, among them some of all devices and some that waited."""
    _, seen = rows
    assert len(seen) >= CYCLES
    assert {row["n"] for row in seen} == {1, 2, 3, 4}
    assert any(row["waits"] for row in seen)
    assert met(seen) == []


def test_a_meeting_is_seen(tmp_path):
    """The check can fail: processes that do not lease meet."""
    assert met(swarm(tmp_path, cycles=20, flags=("no-leases",)))


def test_nobody_starves(rows):
    """A request for all devices is never passed by one that came after it, however small."""
    _, seen = rows
    assert any(row["n"] == len(DEVICES) and row["share"] == 1.0 and row["waits"] for row in seen)
    assert overtaken(seen) == []


def test_a_starved_request_is_seen():
    """The check can fail."""
    patient = {"n": 4, "share": 1.0, "asked": 1, "waits": [2], "got": 9}
    assert overtaken([patient, {"n": 1, "share": 1.0, "asked": 3, "waits": [], "got": 4}]) == [
        patient
    ]


def test_no_device_is_lost(rows):
    """After all were killed, every device can be had at once, and no ticket is left."""
    folder, _ = rows
    with lease(dict.fromkeys(DEVICES, 1.0), len(DEVICES), timeout_s=0, directory=folder) as held:
        assert held.devices == DEVICES
    assert list(folder.glob("*.ticket")) == []
