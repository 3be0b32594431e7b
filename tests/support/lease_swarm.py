"""Eight processes that lease and are killed at random.

Run `python lease_swarm.py FOLDER CYCLES SEED [no-leases]`. Prints one JSON line for each lease that
was held: who, which devices, when it was asked for, waited for and given. What the
leases promise is checked with locks of its own (`inside-DEVICE`), which die with their process too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import TextIO

from pytest_llmperf.devices.leases import lease

DEVICES = ("gpu-0", "gpu-1", "gpu-2", "gpu-3")
PROCESSES = 8
WAIT_S = 60
MIN_KILLS = 20
CYCLES_A_KILL = 3


class NoLease:
    """What a process has that does not ask."""

    def __init__(self, devices: list[str]) -> None:
        self.devices = tuple(devices)

    def release(self) -> None:
        """Nothing."""


def cycle(folder: Path, rng: random.Random, *, ask: bool) -> None:
    """Lease 1 to 4 devices, alone or half of one; be inside; say so; leave."""
    n, share = rng.choice((1, 1, 1, 2, 3, 4)), rng.choice((1.0, 1.0, 0.5))
    asked_ns, waits_ns = time.monotonic_ns(), []
    leased = (
        lease(
            dict.fromkeys(DEVICES, share),
            n,
            timeout_s=WAIT_S,
            directory=folder,
            on_wait=lambda _: waits_ns.append(time.monotonic_ns()),
        )
        if ask
        else NoLease(rng.sample(DEVICES, n))
    )
    row = {
        "n": n,
        "share": share,
        "devices": leased.devices,
        "asked": asked_ns,
        "waits": waits_ns,
        "got": time.monotonic_ns(),
        "met": "",
    }
    with contextlib.ExitStack() as stack:
        for device in leased.devices:
            file = stack.enter_context((folder / f"inside-{device}").open("w"))
            if not entered(file, alone=share == 1.0):
                row["met"] = device
        time.sleep(rng.uniform(0, 0.004))
        os.write(1, json.dumps(row).encode() + b"\n")
    leased.release()


def entered(file: TextIO, *, alone: bool) -> bool:
    """Whether the lock of a device's file was free: nobody inside, or others who share it."""
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def child(folder: Path, seed: int, n_cycles: mmap.mmap, slot: int, *, ask: bool) -> int:
    """Fork one that cycles, and counts its cycles in its slot, until it is killed."""
    pid = os.fork()
    if pid:
        return pid
    rng = random.Random(seed)
    while True:
        cycle(folder, rng, ask=ask)
        n_cycles[slot * 4 : slot * 4 + 4] = (
            int.from_bytes(n_cycles[slot * 4 : slot * 4 + 4]) + 1
        ).to_bytes(4)


def main(folder: Path, cycles: int, seed: int, *, ask: bool) -> None:
    """Kill one at random and start another until so many cycles are done; then end them all."""
    rng = random.Random(seed)
    n_cycles = mmap.mmap(-1, 4 * PROCESSES)
    pids = [child(folder, seed * 1000 + i, n_cycles, i, ask=ask) for i in range(PROCESSES)]
    kills = killed_at = total = 0
    while total < cycles or kills < MIN_KILLS:
        time.sleep(rng.uniform(0.005, 0.03))
        total = sum(int.from_bytes(n_cycles[i * 4 : i * 4 + 4]) for i in range(PROCESSES))
        # On a slow machine too they get somewhere between two kills.
        if total - killed_at < CYCLES_A_KILL:
            continue
        victim = rng.randrange(PROCESSES)
        end(pids[victim])
        kills, killed_at = kills + 1, total
        pids[victim] = child(folder, seed * 1000 + PROCESSES + kills, n_cycles, victim, ask=ask)
    for pid in pids:
        end(pid)


def end(pid: int) -> None:
    """As abruptly as a process can end."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), ask="no-leases" not in sys.argv)
