"""What a scripted model's faults do to the process they happen in."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pytest_llmperf.engines.scripted.options import Fault
from pytest_llmperf.errors import InvalidRun, LoadError

_HEADROOM_BYTES = 64 * 2**20
_HOG_BYTES = 2**30


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's own error, which is a RuntimeError too."""


class Faults:
    """Counts the calls of each kind and does what the script says at each."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        self._faults = faults
        self._rank = int(os.environ.get("RANK", "0"))
        self.calls: Counter[str] = Counter()

    def at(self, place: str) -> set[str]:
        """Count a call; act on its faults, and return the kinds that change what it answers."""
        self.calls[place] += 1
        kinds = [fault.kind for fault in self._faults if self._is_due(fault, place)]
        for kind in kinds:
            _ACTIONS.get(kind, _nothing)()
        return set(kinds)

    def _is_due(self, fault: Fault, place: str) -> bool:
        return (
            fault.place == place
            and fault.nth in (None, self.calls[place])
            and fault.rank in (None, self._rank)
        )


def _nothing() -> None:
    pass


def _spin() -> None:
    while True:
        pass


def _exhaust() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + _HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    bytearray(_HOG_BYTES)


def _start_child() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True
    )
    print(f"child {child.pid}", flush=True)  # noqa: T201 - the worker's log, where tests read it


def _raise(error: type[Exception], message: str) -> Callable[[], None]:
    def act() -> None:
        raise error(message)

    return act


_ACTIONS: dict[str, Callable[[], object]] = {
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(3),
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": lambda: threading.Event().wait(),
    "spin": _spin,
    "oom": _raise(MemoryError, "scripted: no memory"),
    "cuda_oom": _raise(
        OutOfMemoryError, "scripted: CUDA out of memory. Tried to allocate 2.00 GiB"
    ),
    "exhaust": _exhaust,
    "refuse": _raise(LoadError, "scripted: the model refuses to load, as its script says."),
    "invalid": _raise(InvalidRun, "scripted: the run is not valid, as its script says."),
    "crash": _raise(RuntimeError, "scripted: a crash, as the script says"),
    "child": _start_child,
}
